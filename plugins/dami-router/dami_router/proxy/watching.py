"""Notice that a client has left, at a cost that only slow requests pay.

ASGI reports a disconnect as a message, which takes one waiting task per request. For a fast answer that task is wasted,
so it starts only once a request is a few tens of milliseconds old.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dami_router.proxy.wire import Receive

__all__ = ["Watch", "Watches"]


class Watch:
    """Calls `gone` once when the client leaves, unless it was stopped before."""

    def __init__(self, watches: Watches, receive: Receive, gone: Callable[[], None]) -> None:
        self._watches, self._receive, self._gone = watches, receive, gone
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start watching."""
        self._task = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone()

    def stop(self) -> None:
        """Stop watching; `gone` is not called any more."""
        if self._task is not None:
            self._task.cancel()
        else:
            self._watches.drop(self)


class Watches:
    """Begins watches when they are between one and two times `age` seconds old."""

    def __init__(self, age: float = 0.02) -> None:
        self._age = age
        self._young: set[Watch] = set()
        self._older: set[Watch] = set()
        self._timer: asyncio.TimerHandle | None = None

    def start(self, receive: Receive, gone: Callable[[], None]) -> Watch:
        """Watch a client; from now on only the watch may call `receive`."""
        watch = Watch(self, receive, gone)
        self._young.add(watch)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._age, self._tick)
        return watch

    @property
    def resting(self) -> bool:
        """Whether no watch is pending."""
        return self._timer is None

    def drop(self, watch: Watch) -> None:
        """Drop a watch that has not begun."""
        self._young.discard(watch)
        self._older.discard(watch)

    def _tick(self) -> None:
        for watch in self._older:
            watch.begin()
        self._older, self._young = self._young, set()
        self._timer = asyncio.get_running_loop().call_later(self._age, self._tick) if self._older else None
