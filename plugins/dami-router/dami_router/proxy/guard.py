"""Limits on what a client may send before its key is checked: header bytes and fields, time, open connections.

uvicorn has none of these: a header of any size, and a request that never ends, would be accepted.
"""

from __future__ import annotations

import asyncio
import json
from typing import ClassVar

from dami_router.config.router_schema import Limits
from dami_router.proxy.cork import CorkedProtocol

__all__ = ["GuardedProtocol", "guarded"]

_LINGER_S = 1.0
"""After a reply to an unfinished request, the connection stays open this long: the client may still be sending."""

_REASONS = {
    408: b"Request Timeout", 431: b"Request Header Fields Too Large", 503: b"Service Unavailable",
}  # fmt: skip


class GuardedProtocol(CorkedProtocol):
    """uvicorn's protocol within limits: a request beyond them gets 408 or 431, a connection too many 503."""

    limits: ClassVar[Limits] = Limits()
    _timer: asyncio.TimerHandle | None = None
    _reading_headers = True
    _refused = False
    _bytes = 0
    _fields = 0

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
        """Parse, then hold the headers against the limits."""
        if self._refused:
            return
        super().data_received(data)
        if self._refused or not self._reading_headers or self.transport.is_closing():
            return
        self._bytes += len(data)
        if self._bytes > self.limits.header_bytes:
            self._too_large()
        elif self._timer is None and self.cycle is not None:
            # The headers of a further request are incomplete: it has its own time from here on.
            self._start_clock()

    def on_message_begin(self) -> None:
        """Expect the headers of a request."""
        self._reading_headers, self._fields = True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, and count it."""
        self._fields += 1
        if self._fields <= self.limits.header_fields and not self._refused:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, unless its headers are beyond the limits."""
        self._stop_clock()
        self._reading_headers, self._bytes = False, 0
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if self._refused:
            return
        if self._fields > self.limits.header_fields or size > self.limits.header_bytes:
            self._too_large()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, unless the request was refused."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of the body, unless the request was refused."""
        if not self._refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request; where this one's body is unfinished, end the connection soon."""
        unfinished = self.cycle is not None and self.cycle.more_body
        super().on_response_complete()
        if unfinished and not self.transport.is_closing():
            self._refused = True
            self._unset_keepalive_if_required()
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
        busy = self.cycle is not None and not self.cycle.response_complete
        if not busy:  # else the reply of an earlier request is being written: the connection only ends
            body = json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": None}}).encode()
            head = (
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{headers}connection: close\r\n\r\n"
            )
            self.transport.write(b"HTTP/1.1 %d %s\r\n" % (status, _REASONS[status]) + head.encode() + body)
        self.transport.close()


def guarded(limits: Limits) -> type[GuardedProtocol]:
    """Return the protocol under these limits."""
    return type("Guarded", (GuardedProtocol,), {"limits": limits})
