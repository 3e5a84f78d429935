"""Calls to servers over HTTP/1.1: addresses, timeouts, and what a failure means.

The pool of connections is imported when a transport is opened: only serving needs its parser.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dami_router.config.router_schema import Timeouts
from dami_router.config.specs import BackendSpec
from dami_router.errors import FailureError
from dami_router.messages.encodings import can_decode, encoding_of
from dami_router.messages.request import Request
from dami_router.upstream.decoding import DecodedCall
from dami_router.upstream.fleet import Replica
from dami_router.upstream.live_bodies import body_at
from dami_router.upstream.reply import BrokenError, CallError, Calls, Reply, StaleError, UnansweredError
from dami_router.version import __version__

if TYPE_CHECKING:
    from dami_router.upstream.pool import Call, Pool

__all__ = ["BrokenError", "Calls", "Reply", "StaleError", "Transport", "UnansweredError"]

_MAX_REPLY = 256 << 20
# Statuses after which another server may succeed: redirects lead to a sign-in page or to an internal address, and
# gateways have statuses of their own above 504.
_RETRIED = frozenset({401, 403, 408, 424, 429, *range(300, 400), *range(500, 600)} - {501})


@dataclass
class HttpReply:
    """A server's reply, its first bytes read: of a stream, `call` is the rest. Must be closed.

    A stream may be silent for `idle` seconds and must be over at `end`, by the loop's time.
    """

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    first: bytes
    call: Call | DecodedCall | None = None
    idle: float = 0.0
    end: float = 0.0

    @property
    def stream(self) -> bool:
        """Whether it is a stream."""
        return self.call is not None

    async def rest(self) -> AsyncIterator[bytes]:
        """Yield the bytes after the first ones as they arrive; raises BrokenError."""
        if self.call is None:
            return
        now = asyncio.get_running_loop().time
        while (at := now()) < self.end:
            try:
                chunk = await self.call.read(min(at + self.idle, self.end))
            except CallError as error:
                if error.why != "timeout":
                    raise BrokenError("broke off") from None
                if now() < self.end:
                    raise BrokenError("stalled") from None
                break
            if not chunk:
                return
            yield chunk
        raise BrokenError("took too long")

    def close(self) -> None:
        """End the call; the connection closes unless the reply was read to its end."""
        if self.call is not None:
            self.call.close()


class Transport:
    """Sends requests to replicas. Call `open` before and `close` after."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._pool: Pool | None = None
        self._addresses: dict[Replica, _Address] = {}

    async def open(self) -> None:
        """Prepare for calls; no connection is made yet."""
        try:
            from dami_router.upstream.pool import Pool
        except ImportError as error:
            raise FailureError(f"routing needs {error.name}", hint="pip install 'dami-router[serve]'") from None
        self._pool = Pool(self._timeouts.connect, self._timeouts.keepalive)

    async def close(self) -> None:
        """Close all connections."""
        if self._pool is not None:
            self._pool.close()

    async def send(self, replica: Replica, request: Request, lambda_: float, *, fresh: bool = False) -> Reply:
        """Send a request and wait for its first bytes; raises UnansweredError, or StaleError on an old connection.

        A stream is returned at its first event, any other reply whole. A stream that begins with
        an error, as TGI's do with status 200, is no answer. Only a live server is told λ.
        """
        assert self._pool is not None, "open() comes first"
        now = self._pool.loop.time()
        until = now + (self._timeouts.first_byte if request.stream else self._timeouts.total)
        body = body_at(request, replica, lambda_)
        try:
            call = await self._begin(replica, "POST", request.path, request.headers, body, until, fresh=fresh)
            try:
                return await self._reply(call, now + self._timeouts.total)
            except BaseException:
                call.close()
                raise
        except UnansweredError:
            raise
        except CallError as error:
            stale = error.why == "disconnected" and not fresh
            raise (StaleError if stale else UnansweredError)(error.why, error.detail) from None

    async def _reply(self, raw: Call, end: float) -> Reply:
        if raw.status in _RETRIED:
            after = raw.header(b"retry-after") or None
            raise UnansweredError(f"status_{raw.status}", status=raw.status, retry_after=after)
        kind = raw.header(b"content-type").partition(";")[0].strip().lower()
        if kind == "text/html" and raw.status < 300:
            raise UnansweredError("web_page")
        encoding = encoding_of(raw.headers)
        call = DecodedCall(raw, encoding) if can_decode(encoding) else raw
        if kind == "text/event-stream":
            first = await (_first_event(call) if not encoding or call is not raw else call.read())
            if begins_with_error(first):
                raise UnansweredError("stream_error")
            return HttpReply(call.status, call.headers, first, call, self._timeouts.idle, end)
        reply = HttpReply(call.status, call.headers, await _whole(call))
        if (
            raw.unframed
            and kind == "application/json"
            and raw.status == 200
            and not encoding
            and not _is_json(reply.first)
        ):
            raise UnansweredError("broke_off")  # only its syntax tells a part of such a body from all of it
        call.close()
        return reply

    def _begin(
        self, replica: Replica, method: str, path: str, headers: Mapping[str, str], body: bytes, until: float,
        *, fresh: bool,
    ) -> Coroutine[Any, Any, Call]:  # fmt: skip
        assert self._pool is not None, "open() comes first"
        address = self._addresses.get(replica)
        if address is None:
            address = self._addresses[replica] = _Address(replica.spec)
        head = address.head(method, path, headers, len(body))
        return self._pool.call(address.origin, head, body, until, fresh=fresh)

    async def get(self, replica: Replica, path: str, timeout: float) -> tuple[int, Any]:
        """Fetch JSON from a replica, for a probe; the body is None where it is not JSON. Raises CallError."""
        return await self._probe("GET", replica, path, {}, b"", timeout)

    async def post(
        self, replica: Replica, path: str, data: Mapping[str, Any], timeout: float, *, fresh: bool = True
    ) -> tuple[int, Any]:
        """Send JSON to a replica, for a probe; on a kept connection unless `fresh`.

        Raises CallError. An old connection that ends before any byte is replaced once.
        """
        body, json_ = json.dumps(data).encode(), {"content-type": "application/json"}
        try:
            return await self._probe("POST", replica, path, json_, body, timeout, fresh=fresh)
        except CallError as error:
            if fresh or error.why != "disconnected":
                raise
        return await self._probe("POST", replica, path, json_, body, timeout)

    async def _probe(
        self, method: str, replica: Replica, path: str, headers: Mapping[str, str], body: bytes, timeout: float,
        *, fresh: bool = True,
    ) -> tuple[int, Any]:  # fmt: skip
        until = asyncio.get_running_loop().time() + timeout
        # A health check is about the server, not about a stale connection to it.
        call = await self._begin(replica, method, path, headers, body, until, fresh=fresh)
        try:
            data = await _whole(call)
        finally:
            call.close()
        try:
            return call.status, json.loads(data)
        except (ValueError, RecursionError):
            return call.status, None


class _Address:
    """A replica's address: the origin to connect to, and the headers that every request carries."""

    def __init__(self, spec: BackendSpec) -> None:
        from dami_router.upstream.pool import Origin

        parts = urlsplit(spec.url)
        tls = parts.scheme == "https"
        self.origin = Origin(parts.hostname or "", parts.port or (443 if tls else 80), tls, spec.ca)
        self._base = parts.path
        self._common = f"host: {parts.netloc}\r\naccept-encoding: identity\r\n"
        if spec.api_key:
            self._common += f"authorization: Bearer {spec.api_key}\r\n"

    def head(self, method: str, path: str, headers: Mapping[str, str], length: int) -> bytes:
        """Return a request's first line and headers. Those given hold printable ASCII, with names in lower case."""
        given = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if "user-agent" not in headers:
            given += f"user-agent: dami-router/{__version__}\r\n"
        size = f"content-length: {length}\r\n" if length or method == "POST" else ""
        return f"{method} {self._base}{path} HTTP/1.1\r\n{self._common}{given}{size}\r\n".encode("ascii")


async def _whole(call: Call | DecodedCall) -> bytes:
    data = await call.read()
    if call.complete or not data:
        return data
    parts, size = [data], len(data)
    while chunk := await call.read():
        parts.append(chunk)
        size += len(chunk)
        if size > _MAX_REPLY:
            raise CallError("too_large")
    return b"".join(parts)


async def _first_event(call: Call | DecodedCall) -> bytes:
    """Read until the first event is complete, or is known not to be an error."""
    first = b""
    while chunk := await call.read():
        first += chunk
        if b"\n\n" in first or b"\r\n\r\n" in first or len(first) > 1 << 16:
            break
    return first


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def begins_with_error(data: bytes) -> bool:
    """Return whether the first event of a stream is an error: `data: {"error": …}`, OpenAI's or TGI's."""
    for line in data.lstrip().splitlines()[:4]:
        if line.startswith(b"data:"):
            if b'"error"' not in line:
                return False
            try:
                event = json.loads(line[5:])
            except (ValueError, RecursionError):
                return False
            return isinstance(event, dict) and bool(event.get("error"))
    return False
