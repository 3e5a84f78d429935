"""Admission: how many requests are served at once, and how many may wait."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

__all__ = ["Admission", "OverloadedError"]


class OverloadedError(Exception):
    """The queue is full, or the wait was too long. `retry_after` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("overloaded")
        self.retry_after = retry_after


@dataclass
class Admission:
    """At most `concurrency` requests inside; `queue` more wait at most `wait_s` seconds, first come first served."""

    concurrency: int
    queue: int
    wait_s: float
    inside: int = field(default=0, init=False)
    _waiting: deque[asyncio.Future[None]] = field(default_factory=deque, init=False)

    @property
    def waiting(self) -> int:
        """The number of waiting requests."""
        return len(self._waiting)

    async def enter(self) -> None:
        """Enter, waiting if needed; raises OverloadedError. Each `enter` needs one `leave`."""
        if self.inside < self.concurrency and not self._waiting:
            self.inside += 1
            return
        if len(self._waiting) >= self.queue:
            raise OverloadedError(max(1, round(self.wait_s)))
        await self._wait()

    async def _wait(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self.wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.leave()  # the turn came just as the wait ended: pass it on
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise OverloadedError(max(1, round(self.wait_s))) from None
            raise

    def leave(self) -> None:
        """Leave; the request that has waited longest enters."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.inside -= 1
