"""A bounded cache of results; concurrent requests for one key share one computation."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Memo"]

V = TypeVar("V")


@dataclass
class _Flight(Generic[V]):
    task: asyncio.Task[V]
    waiting: int = 0


class Memo(Generic[V]):
    """An LRU cache of `size` results. Size 0 keeps none, but concurrent requests still share a computation.

    Failures are not kept. A computation is cancelled when its last waiter leaves.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[bytes, V] = OrderedDict()
        self._flights: dict[bytes, _Flight[V]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    async def get(self, key: bytes, make: Callable[[], Awaitable[V]], keep: Callable[[V], bool] = lambda _: True) -> V:
        """Return the result for a key: from the cache, from a running computation, or from `make`.

        A result for which `keep` is false goes to its waiters but is not cached.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.ensure_future(self._make(key, make, keep)))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                flight.task.cancel()
                self._landed(key)

    async def _make(self, key: bytes, make: Callable[[], Awaitable[V]], keep: Callable[[V], bool]) -> V:
        try:
            made = await make()
        finally:
            self._landed(key)
        if self._size and keep(made):
            self._kept[key] = made
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return made

    def _landed(self, key: bytes) -> None:
        # From now on a request starts a new computation, even while a cancelled one still unwinds.
        flight = self._flights.get(key)
        if flight is not None and (flight.task is asyncio.current_task() or not flight.waiting):
            del self._flights[key]
