"""Leaving at once when the user interrupts a transfer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dami_router.output import Output

__all__ = ["stoppable"]


@contextmanager
def stoppable(output: Output) -> Iterator[None]:
    """End the process with 130 on an interrupt, without waiting for threads that are still sending.

    For commands that may be killed at any moment, and only for those.
    """
    try:
        yield
    except KeyboardInterrupt:
        output.note("stopped; the same command goes on")
        sys.stderr.flush()
        os._exit(130)
