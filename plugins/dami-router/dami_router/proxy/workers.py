"""Several processes behind one port: each listens on it, and the kernel gives every connection to one of them.

The first process answers no request. It starts the others, starts one again that has died, and ends them all.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from dami_router.errors import FailureError

__all__ = ["Workers", "listening"]

_LOG = logging.getLogger(__name__)
_PAUSE_S = 1.0
"""Before a worker that has died is started again."""


class Workers:
    """Runs `work` in `count` processes; it gets the worker's number and what to call once it serves, and returns."""

    def __init__(self, count: int, work: Callable[[int, Callable[[], None]], None]) -> None:
        self._count, self._work = count, work
        self._running: dict[int, int] = {}
        # The workers read the one end, which ends with the process that holds the other: however it dies, they end too.
        self._watched, self._held = os.pipe()
        self._stopping = False

    def run(self, ready: Callable[[], None]) -> None:
        """Run until SIGTERM or SIGINT; `ready` is called once all serve. Raises FailureError where one cannot start."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop())
        for worker in range(self._count):
            if not self._stopping and not self._start(worker) and not self._stopping:
                self._stop()
                self._wait()
                raise FailureError("a worker could not start", hint="the reason is above")
        if not self._stopping:
            ready()
        self._wait()

    def _stop(self) -> None:
        self._stopping = True
        for process in self._running:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)

    def _start(self, worker: int) -> bool:
        """Start a worker; False where it ends before it serves."""
        reading, writing = os.pipe()
        process = os.fork()
        if not process:
            os.close(reading)
            os.close(self._held)
            threading.Thread(target=_end_with, args=(self._watched,), daemon=True).start()
            self._be(worker, writing)
        os.close(writing)
        self._running[process] = worker
        if self._stopping:  # the signal came before the process was known
            self._stop()
        with os.fdopen(reading, "rb") as pipe:
            return pipe.read(1) == b"1"

    def _be(self, worker: int, writing: int) -> None:
        """Be a worker; the process ends here."""
        code = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            random.seed()
            self._work(worker, lambda: _tell(writing))
            code = 0
        except FailureError as error:
            _LOG.error("%s", error.message)
        except BaseException as error:
            _LOG.exception("worker %d: %s", worker, type(error).__name__)
        finally:
            os._exit(code)

    def _wait(self) -> None:
        """Wait for all workers; start one again that ends before it should."""
        while self._running:
            process, status = os.wait()
            worker = self._running.pop(process, None)
            if worker is not None and not self._stopping:
                _LOG.warning("worker %d ended with status %d; it is started again", worker, status)
                time.sleep(_PAUSE_S)
                self._start(worker)


def _end_with(watched: int) -> None:
    os.read(watched, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _tell(writing: int) -> None:
    os.write(writing, b"1")
    os.close(writing)


def listening(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address that other processes may bind, too; raises FailureError."""
    if not hasattr(socket, "SO_REUSEPORT"):
        raise FailureError("this system cannot share a port among processes", hint="use --workers 1")
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise FailureError(f"no server can start at {host}:{port}: {error.strerror or error}") from None
    return bound
