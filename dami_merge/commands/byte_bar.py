"""The progress bar of commands that move many bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

__all__ = ["byte_bar"]


@contextmanager
def byte_bar(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show bytes, throughput and time left on stderr; on a terminal live, in a log every ten seconds."""
    from tqdm import tqdm

    live = sys.stderr.isatty()
    with tqdm(
        total=total, unit="B", unit_scale=True, desc=what, file=sys.stderr, disable=total == 0,
        mininterval=0.2 if live else 10.0,
    ) as shown:  # fmt: skip
        lock = Lock()

        def advance(count: int) -> None:
            with lock:  # several threads report
                shown.update(count)

        yield advance
