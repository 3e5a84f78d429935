"""Mathematical equality by math-verify (extra `math`), in a process of its own with limits on time and memory.

sympy can run forever on some input, and math-verify's own timeout is a signal that only works in a main
thread. So a worker process compares the answers; on a timeout it is killed, and the answer counts as wrong.
"""

from __future__ import annotations

import importlib.util
import json
import select
import subprocess
import sys
import threading
import time

from dami_router.errors import FailureError
from dami_router.grading.answers import marked
from dami_router.grading.graders import Exact, Numeric

__all__ = ["MathVerify"]

_LONGEST = 4000


class MathVerify:
    """Correct if equal as an expression: `\\frac12` and `0.5`, sets, intervals, equations.

    `seconds` bounds one comparison; `overran` counts timeouts.
    """

    name = "math-verify"

    def __init__(self, seconds: float = 10.0) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise FailureError("--grade math-verify needs math-verify", hint="pip install 'dami-router[math]'")
        self._seconds = seconds
        self._worker: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self.overran = 0

    def unfit(self, expected: str) -> str | None:
        """Any short text can be compared; text without mathematics is compared as text."""
        return f"is longer than {_LONGEST} characters" if len(expected) > _LONGEST else Exact().unfit(expected)

    def grade(self, answer: str, expected: str) -> float:
        """Compare as text and as numbers first, then as expressions."""
        if Exact().grade(answer, expected) or Numeric().grade(answer, expected):
            return 1.0
        mark = marked(answer)
        given = answer[-_LONGEST:] if mark is None else f"\\boxed{{{mark[:_LONGEST]}}}"
        with self._lock:
            return float(self._ask({"expected": f"${expected}$", "answer": given}))

    def close(self) -> None:
        """Stop the worker."""
        with self._lock:
            self._stop()

    def _ask(self, question: dict[str, str]) -> bool:
        worker = self._running()
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(json.dumps(question).encode() + b"\n")
            worker.stdin.flush()
            said = _line(worker, time.monotonic() + self._seconds)
        except OSError:
            said = b""
        if said not in (b"true\n", b"false\n"):
            # Timeout, out of memory, or crash: the next answer gets a new worker.
            self.overran += 1
            self._stop()
        return said == b"true\n"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._worker is None:
            command = [sys.executable, "-m", "dami_router.grading.math_worker"]
            self._worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            if _line(self._worker, time.monotonic() + 120) != b"ready\n":
                self._stop()
                raise FailureError("math-verify does not start", hint="python -c 'import math_verify' shows why")
        return self._worker

    def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.communicate()


def _line(worker: subprocess.Popen[bytes], end: float) -> bytes:
    """Read one short line from a worker, or what has arrived when the time is up or the worker ends."""
    assert worker.stdout is not None
    said = b""
    while not said.endswith(b"\n"):
        ready, _, _ = select.select([worker.stdout], [], [], max(end - time.monotonic(), 0))
        piece = worker.stdout.read1(64) if ready else b""  # type: ignore[attr-defined]
        if not piece:
            break
        said += piece
    return said
