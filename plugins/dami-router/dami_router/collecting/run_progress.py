"""Progress of a run, reported at intervals."""

from __future__ import annotations

import time
from collections.abc import Callable

from dami_router.collecting.run import Outcome

__all__ = ["Progress"]

_EVERY = 10.0


class Progress:
    """Called after every write; reports at most every ten seconds."""

    def __init__(self, total: int, outcome: Outcome, say: Callable[[str], None]) -> None:
        self._total, self._outcome, self._say = total, outcome, say
        self._begun = self._told = time.monotonic()

    def __call__(self) -> None:
        """Report progress if ten seconds have passed."""
        now = time.monotonic()
        if now - self._told < _EVERY:
            return
        self._told = now
        done = self._outcome.written
        rate = done / (now - self._begun)
        rest = (self._total - done - self._outcome.left) / rate
        failed = f", {self._outcome.failures.total():,} failed" if self._outcome.failures else ""
        self._say(f"{done:,} of {self._total:,}{failed}; {rate:.1f} per second, about {_time(rest)} left")


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
