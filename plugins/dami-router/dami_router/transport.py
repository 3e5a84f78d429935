"""Calls to servers: aiohttp sessions, time limits, and what a failure means.

aiohttp is imported when a transport is opened: only serving needs it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dami_router.config import Timeouts
from dami_router.errors import FailureError
from dami_router.fleet import Replica
from dami_router.request import Request

if TYPE_CHECKING:
    import aiohttp

__all__ = ["BrokenError", "Calls", "Reply", "StaleError", "Transport", "UnansweredError"]

_MAX_REPLY = 256 << 20
# What a server may say that another server can do better.
_RETRIED = frozenset({401, 403, 408, 424, 429, 500, 502, 503, 504})


class UnansweredError(Exception):
    """A call that gave no usable reply, before its first byte counted. `why` is one bounded word."""

    def __init__(self, why: str, *, status: int = 0, retry_after: str | None = None) -> None:
        super().__init__(why)
        self.why, self.status, self.retry_after = why, status, retry_after

    @property
    def counts(self) -> bool:
        """Whether it speaks against the replica: being busy does not."""
        return self.status not in (424, 429)


class StaleError(UnansweredError):
    """The connection ended before any byte of the reply: it may only have been an old one."""


class BrokenError(Exception):
    """The reply broke off, or stalled, after its first byte."""


class Reply(Protocol):
    """A reply whose first bytes are there: all of them, unless it is a stream. Must be closed."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """The headers as they came."""
        ...

    @property
    def first(self) -> bytes:
        """The first bytes."""
        ...

    @property
    def stream(self) -> bool:
        """Whether more may follow."""
        ...

    def rest(self) -> AsyncIterator[bytes]:
        """Yield what follows the first bytes as it comes; raises BrokenError."""
        ...

    def close(self) -> None:
        """End the call: whoever answers stops working on it, unless the reply was read to its end."""
        ...


class Calls(Protocol):
    """How requests reach replicas: over HTTP, or inside this process. `open` before, `close` after."""

    async def open(self) -> None:
        """Get ready."""
        ...

    async def close(self) -> None:
        """End everything."""
        ...

    async def send(self, replica: Replica, request: Request, lambda_: float, *, fresh: bool = False) -> Reply:
        """Send a request that wants λ and wait for the reply's first bytes; raises UnansweredError."""
        ...

    async def get(self, replica: Replica, path: str, timeout: float) -> tuple[int, Any]:
        """Fetch JSON from a replica, for a probe."""
        ...

    async def post(self, replica: Replica, path: str, data: Mapping[str, Any], timeout: float) -> tuple[int, Any]:
        """Send JSON to a replica, for a probe."""
        ...


class _HttpReply:
    """A reply over HTTP."""

    def __init__(
        self, response: aiohttp.ClientResponse, first: bytes, *, stream: bool, idle: float, end: float
    ) -> None:
        self.status = response.status
        self.headers = response.raw_headers
        self.first = first
        self.stream = stream
        self._response, self._idle, self._end = response, idle, end

    async def rest(self) -> AsyncIterator[bytes]:
        """Yield what follows the first bytes as it comes; raises BrokenError."""
        import aiohttp

        read, now = self._response.content.readany, asyncio.get_running_loop().time
        while True:
            try:
                async with asyncio.timeout_at(min(now() + self._idle, self._end)):
                    chunk = await read()
            except TimeoutError:
                raise BrokenError("took too long" if now() >= self._end else "stalled") from None
            except (aiohttp.ClientError, OSError):
                raise BrokenError("broke off") from None
            if not chunk:
                return
            yield chunk

    def close(self) -> None:
        """End the call: the server sees the connection close unless the reply was read to its end."""
        self._response.close()


class Transport:
    """Sends requests to replicas. `open` before, `close` after."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._session: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the sessions; one keeps connections shorter than servers do, one never keeps any."""
        try:
            import aiohttp
        except ImportError:
            raise FailureError("routing needs aiohttp", hint="pip install 'dami-router[serve]'") from None

        limit = aiohttp.ClientTimeout(total=None, sock_connect=self._timeouts.connect)
        kept = aiohttp.TCPConnector(limit=0, keepalive_timeout=self._timeouts.keepalive)
        common: dict[str, Any] = {"auto_decompress": False, "timeout": limit, "cookie_jar": aiohttp.DummyCookieJar()}
        self._session = aiohttp.ClientSession(connector=kept, **common)
        self._fresh = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True), **common)

    async def close(self) -> None:
        """Close all connections."""
        for session in (self._session, self._fresh):
            if session is not None:
                await session.close()

    async def send(self, replica: Replica, request: Request, lambda_: float, *, fresh: bool = False) -> Reply:
        """Send a request and wait for its first bytes; raises UnansweredError, or StaleError on an old connection.

        A stream is returned at its first event, any other reply whole. A stream that begins with
        an error, as TGI's do with status 200, is no answer. Only a live server is told λ.
        """
        import aiohttp

        end = asyncio.get_running_loop().time() + self._timeouts.total
        limit = self._timeouts.first_byte if request.stream else self._timeouts.total
        response: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout(limit):
                response = await self._post(replica, request, lambda_, fresh)
                if response.status in _RETRIED:
                    await _discard(response)
                    raise UnansweredError(
                        f"status_{response.status}",
                        status=response.status,
                        retry_after=response.headers.get("Retry-After"),
                    )
                return await self._begin(response, end)
        except BaseException as error:
            if response is not None:
                response.close()
            if isinstance(error, TimeoutError):
                connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
                raise UnansweredError("connect_timeout" if connecting else "timeout") from None
            if isinstance(error, aiohttp.ClientConnectorError):
                raise UnansweredError("refused") from None
            if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError) and response is None:
                raise UnansweredError("disconnected") if fresh else StaleError("disconnected") from None
            if isinstance(error, aiohttp.ClientResponseError | ValueError):
                raise UnansweredError("not_http") from None
            if isinstance(error, aiohttp.ClientError | OSError):
                raise UnansweredError("broke_off") from None
            raise

    async def _post(self, replica: Replica, request: Request, lambda_: float, fresh: bool) -> aiohttp.ClientResponse:
        session = self._fresh if fresh else self._session
        assert session is not None, "open() comes first"
        headers = {**request.headers, "Accept-Encoding": "identity", **_key(replica)}
        body = request.body_for(replica.served_as(lambda_))
        return await session.post(replica.url(request.path), data=body, headers=headers, allow_redirects=False)

    async def _begin(self, response: aiohttp.ClientResponse, end: float) -> Reply:
        idle = self._timeouts.idle
        if response.content_type == "text/event-stream":
            first = await _first_event(response)
            if begins_with_error(first):
                raise UnansweredError("stream_error")
            return _HttpReply(response, first, stream=True, idle=idle, end=end)
        body = await _whole(response)
        return _HttpReply(response, body, stream=False, idle=idle, end=end)

    async def get(self, replica: Replica, path: str, timeout: float) -> tuple[int, Any]:
        """Fetch JSON from a replica, for a probe; the body is None where it is no JSON."""
        return await self._probe("GET", replica, path, None, timeout)

    async def post(self, replica: Replica, path: str, data: Mapping[str, Any], timeout: float) -> tuple[int, Any]:
        """Send JSON to a replica, for a probe."""
        return await self._probe("POST", replica, path, data, timeout)

    async def _probe(
        self, method: str, replica: Replica, path: str, data: Mapping[str, Any] | None, timeout: float
    ) -> tuple[int, Any]:
        assert self._fresh is not None, "open() comes first"
        async with (
            asyncio.timeout(timeout),
            self._fresh.request(
                method, replica.url(path), json=data, headers=_key(replica), allow_redirects=False
            ) as response,
        ):
            body = await _whole(response)
        try:
            return response.status, json.loads(body)
        except (ValueError, RecursionError):
            return response.status, None


def _key(replica: Replica) -> dict[str, str]:
    return {"Authorization": f"Bearer {replica.spec.api_key}"} if replica.spec.api_key else {}


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    while chunk := await response.content.readany():
        parts.append(chunk)
        size += len(chunk)
        if size > _MAX_REPLY:
            raise UnansweredError("too_large")
    return b"".join(parts)


async def _discard(response: aiohttp.ClientResponse) -> None:
    await response.content.read(1 << 16)


async def _first_event(response: aiohttp.ClientResponse) -> bytes:
    """Read until the first event is whole, or until it is clear that it is no error."""
    first = bytearray()
    while chunk := await response.content.readany():
        first += chunk
        if b"\n\n" in first or b"\r\n\r\n" in first or len(first) > 1 << 16:
            break
    return bytes(first)


def begins_with_error(data: bytes) -> bool:
    """Say whether the first event of a stream is an error: `data: {"error": …}`, OpenAI's or TGI's."""
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
