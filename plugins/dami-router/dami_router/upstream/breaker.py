"""A circuit breaker: stop calling a replica that keeps failing, then try it once after a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Breaker", "State"]

State = Literal["closed", "half-open", "open"]


@dataclass
class Breaker:
    """Opens after `failures` failures in a row; after `open_s` seconds, one trial call decides."""

    failures: int = 5
    open_s: float = 5.0
    clock: Callable[[], float] = time.monotonic
    _failed: int = field(default=0, init=False)
    _opened: float | None = field(default=None, init=False)
    _trial: bool = field(default=False, init=False)

    @property
    def state(self) -> State:
        """The current state."""
        if self._opened is None:
            return "closed"
        return "open" if self.clock() - self._opened < self.open_s else "half-open"

    @property
    def ready(self) -> bool:
        """Whether a call may be made: always when closed, one at a time when half-open."""
        return self._opened is None or (not self._trial and self.state == "half-open")

    def start(self) -> None:
        """Note that a call begins."""
        if self._opened is not None:
            self._trial = True

    def began(self) -> None:
        """Close for now: a stream has begun. The failures before it count until it has succeeded."""
        self._opened, self._trial = None, False

    def succeeded(self) -> None:
        """Close the breaker: the replica answers."""
        self._failed, self._opened, self._trial = 0, None, False

    def failed(self) -> None:
        """Count a failure; open at the limit, and at once after a failed trial."""
        self._failed += 1
        if self._failed >= self.failures or self._trial:
            self._opened = self.clock()
        self._trial = False

    def trip(self) -> None:
        """Open at once: the replica is known not to answer."""
        self._failed, self._opened, self._trial = self.failures, self.clock(), False

    def abandoned(self) -> None:
        """Note a call that says nothing about the replica, such as one whose client left."""
        self._trial = False
