"""Leaving at once when the user interrupts a transfer."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dami_router.output import Output

__all__ = ["stoppable"]


@contextmanager
def stoppable(output: Output) -> Iterator[None]:
    """End the process with 130 on an interrupt, without waiting for threads that are still sending.

    For commands that may be killed at any moment, and only for those. A thread answers the signal, told by the
    system itself: Python answers signals in the main thread alone, and one that comes just before this thread
    begins to wait for another is not seen until the wait ends, which here may take as long as the transfer.
    """
    before = signal.getsignal(signal.SIGINT)
    ignored = before is signal.SIG_IGN  # as a shell has it for its background jobs
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    watched, told = socket.socketpair()
    told.setblocking(False)
    watcher = threading.Thread(target=_leave_when_told, args=(watched, output), name="interrupt", daemon=True)
    watcher.start()
    told_before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
        signal.set_wakeup_fd(told_before)
        told.close()
        watcher.join()
        watched.close()


def _leave_when_told(watched: socket.socket, output: Output) -> None:
    while number := watched.recv(1):
        if number[0] == signal.SIGINT:
            with suppress(RuntimeError, OSError, ValueError):  # whatever has become of stderr
                output.note("stopped; the same command goes on")
                sys.stderr.flush()
            os._exit(130)
