"""One connection to a server: one request at a time, with one time limit at a time.

Reading pauses while received bytes wait to be taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from dami_router.upstream.http1 import ReplyParser
from dami_router.upstream.reply import CallError

__all__ = ["Connection"]

_HIGH_WATER = 1 << 16


class Connection(asyncio.Protocol):
    """`send`, then `head`, then `read` to the end; then, where `reusable`, `send` again.

    `reply` has the status and the headers. `lost` is called once, when the connection has ended.
    """

    def __init__(self, lost: Callable[[Connection], None]) -> None:
        self.reply = ReplyParser()
        self.ended = False
        self.idle_since = 0.0
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def reusable(self) -> bool:
        """Whether reply and request are both complete, so that another request may follow."""
        reply, transport = self.reply, self._transport
        sound = reply.complete and reply.keep and not self._paused and not transport.is_closing()
        return sound and not transport.get_write_buffer_size()

    def send(self, head: bytes, body: bytes, until: float) -> None:
        """Send a request; `head` and `read` raise once the deadline (the event loop's time) has passed."""
        self.reply.expect()
        self._limit(until)
        if self.ended:
            self.reply.end(clean=False)
        elif len(body) < _HIGH_WATER:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    async def head(self) -> None:
        """Wait for the status and the headers; raises CallError."""
        while not self.reply.headed:
            await self._more()

    async def read(self, until: float | None = None) -> bytes:
        """Return the next bytes of the body, waiting for them if needed; b"" at its end. Raises CallError."""
        reply = self.reply
        while not reply.parts:
            if reply.complete:
                return b""
            if until is not None:
                self._limit(until)
            await self._more()
        parts, reply.parts, reply.size = reply.parts, [], 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def abort(self) -> None:
        """Close the connection now."""
        self._transport.abort()

    async def _more(self) -> None:
        if self.reply.failed is not None:
            raise CallError(self.reply.failed)
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Timers are expensive and limits are rarely reached: the timer keeps running when the limit moves on, and
    # is set again when it fires too early.

    def _limit(self, until: float) -> None:
        self._deadline = until
        if self._timer is None or until < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(until, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._waiter is None:
            return  # idle, or the reader of the reply is slow, not the server
        if self._loop.time() < self._deadline:
            self._limit(self._deadline)
        else:
            self.reply.fail("timeout")
            self._wake()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if self.reply.complete:
            # Unrequested bytes: they cannot be the reply to the next request.
            self._transport.abort()
            return
        self.reply.feed(data)
        if self.reply.size > _HIGH_WATER and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:  # noqa: D102
        self._end(clean=True)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: D102
        self._end(clean=error is None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._lost(self)

    def _end(self, *, clean: bool) -> None:
        self.ended = True
        self.reply.end(clean=clean)
        self._wake()
