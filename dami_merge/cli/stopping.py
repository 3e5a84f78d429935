"""Leaving at once when the user interrupts a transfer."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from dami_router.output import Output

__all__ = ["stoppable"]


@contextmanager
def stoppable(output: Output) -> Iterator[None]:
    """End the process with 130 on an interrupt, without waiting for threads that are still sending.

    For commands that may be killed at any moment, and only for those. The signal itself is answered: an exception
    could be raised where the main thread waits for others, and wait with it.
    """

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        # The interrupt may have come in the middle of writing to the same stream.
        with suppress(RuntimeError, OSError):
            output.note("stopped; the same command goes on")
            sys.stderr.flush()
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    ignored = before is signal.SIG_IGN  # as a shell has it for its background jobs
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
