"""Limits on what a client may send before its key is checked: header bytes and fields, time, open connections.

uvicorn has none of these: a header of any size, and a request that never ends, would be accepted.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, ClassVar

import httptools

from dami_router.config.router_schema import Limits
from dami_router.proxy.cork import CorkedProtocol

if TYPE_CHECKING:
    from uvicorn._types import HTTPScope

__all__ = ["GuardedProtocol", "guarded"]

_LINGER_S = 1.0
"""After a reply to an unfinished request, the connection stays open this long: the client may still be sending, and a
connection closed under it loses the reply."""


_REASONS = {
    400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large", 503: b"Service Unavailable",
}  # fmt: skip


class GuardedProtocol(CorkedProtocol):
    """uvicorn's protocol within limits: a request beyond them gets 408 or 431, a connection too many 503."""

    # What runs for every request names its base: `super()` would cost a request 1 %.

    limits: ClassVar[Limits] = Limits()
    _timer: asyncio.TimerHandle | None = None
    _headed: HTTPScope | None = None
    """The last request whose headers are complete."""
    _refused = _moved = _elsewhere = False
    _bytes = 0
    """Bytes since the last that made a request progress: its headers complete, its body, or its end."""
    _data = _again = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock for the first request's headers; refuse a connection too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, f"more than {self.limits.connections} connections are open", "retry-after: 1\r\n")
        else:
            self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, then hold headers, trailers and the framing of chunks against the limits."""
        self._moved, self._again = False, data
        while self._again and not self._refused and not self.transport.is_closing():
            self._data, self._again = self._again, b""
            CorkedProtocol.data_received(self, self._data)
        if self._refused or self.transport.is_closing():
            return
        # A block that made progress may end with the next request's first bytes.
        reading_headers = self.scope is not self._headed
        self._bytes = reading_headers if self._moved else self._bytes + len(data)
        if self._bytes > self.limits.header_bytes:
            self._too_large()
        elif reading_headers and self._timer is None and self.cycle is not None:
            # The headers of a further request are incomplete: it has its own time from here on.
            self._start_clock()

    def on_headers_complete(self) -> None:
        """Start the request, unless its headers are beyond the limits."""
        if self._timer is not None:
            self._stop_clock()
        self._headed, self._moved = self.scope, True
        if self._refused:
            return
        limits = self.limits
        # Their exact size matters only where all that has come is more.
        large = self._bytes + len(self._data) > limits.header_bytes and self._size() > limits.header_bytes
        if large or len(self.headers) > limits.header_fields:
            self._too_large()
            return
        # CONNECT has no address here, and is a 400 or 405.
        self._elsewhere = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if not self._elsewhere:
            CorkedProtocol.on_headers_complete(self)
            self.headers = []  # for what comes after the body: a trailer is no header

    def _size(self) -> int:
        """Return the bytes of the request's URL and headers."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, unless the request was refused."""
        self._moved = True
        if not self._refused:
            CorkedProtocol.on_body(self, body)

    def on_message_complete(self) -> None:
        """Take the end of the body, unless the request was refused."""
        self._moved = True
        if self._refused or self._elsewhere:
            return
        CorkedProtocol.on_message_complete(self)
        self.scope["state"]["whole"] = True
        if self.cycle.response_complete:  # answered before its end: the connection is as good as any again
            self._stop_clock()
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """Go on with the next request; where this one's body is unfinished, it has little time to end."""
        # With requests in the pipeline, `cycle` is the last of them, and this one is complete.
        unfinished = not self.pipeline and self.cycle is not None and self.cycle.more_body
        CorkedProtocol.on_response_complete(self)
        if unfinished and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._end_soon()

    def _unsupported_upgrade_warning(self) -> None:
        """Read a request that asks for another protocol (Java's client does, for HTTP/2) as if it had not asked.

        The parser takes what follows the headers for that protocol: it is parsed again behind headers without the wish.
        """
        upgrade = sys.exc_info()[1]
        if self._refused or not self._elsewhere or not isinstance(upgrade, httptools.HttpParserUpgrade):
            return
        kept = b"".join(b"%s: %s\r\n" % pair for pair in self.headers if pair[0] != b"upgrade")
        version = self.parser.get_http_version().encode()
        head = b"%s %s HTTP/%s\r\n%s\r\n" % (self.parser.get_method(), self.url, version, kept)
        self.parser = httptools.HttpRequestParser(self)
        self._again = head + self._data[upgrade.args[0] :]

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Refuse what is not HTTP: as the reply to its own request, never in the place of another's."""
        cycle = self.cycle
        words = "expected a valid request in HTTP/1.1"
        if cycle is not None and cycle.more_body and not cycle.response_started and not self.pipeline:
            self._answer(400, words)
            self.transport.close()
        else:
            self._refuse(400, words)

    def _end_after_replies(self) -> None:
        """Read no more; the connection ends with the reply to the last whole request, or now where that is cut off."""
        self._refused = True
        self._stop_clock()
        if self.cycle.more_body:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def _end_soon(self) -> None:
        self._stop_clock()
        self._timer = self.loop.call_later(_LINGER_S, self.transport.close)

    def _start_clock(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_s, self._too_slow)

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_large(self) -> None:
        limits = self.limits
        self._refuse(431, f"the headers are larger than {limits.header_bytes} bytes or {limits.header_fields} fields")

    def _too_slow(self) -> None:
        self._timer = None
        if self._bytes or self.headers:
            self._refuse(408, f"the headers took longer than {self.limits.header_s:g} seconds")
        else:
            self.transport.close()  # nothing was sent: an unused connection

    def _refuse(self, status: int, message: str, headers: str = "") -> None:
        self._refused = True
        self._stop_clock()
        if self.cycle is not None and (self.cycle.more_body or not self.cycle.response_complete):
            self._end_after_replies()
        else:
            self._answer(status, message, headers)
            self._unset_keepalive_if_required()
            self._end_soon()

    def _answer(self, status: int, message: str, headers: str = "") -> None:
        body = json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": None}}).encode()
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{headers}connection: close\r\n\r\n"
        self.transport.write(b"HTTP/1.1 %d %s\r\n" % (status, _REASONS[status]) + head.encode() + body)
        self._corked.flush()


def guarded(limits: Limits) -> type[GuardedProtocol]:
    """Return the protocol under these limits."""
    return type("Guarded", (GuardedProtocol,), {"limits": limits})
