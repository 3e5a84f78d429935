"""The journal of measurements, beside the map to be written: an interrupted calibration resumes from it.

One line per query: its digest and its scores, no text. The first line holds the settings; a journal of other settings
is refused.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from dami_router.errors import FailureError, MisuseError
from dami_router.estimators.calibrated import FORMS, Form

__all__ = ["ProbeJournal", "Scores", "journal"]

Scores = Mapping[Form, float]


@dataclass
class ProbeJournal:
    """An open journal; `done` has its scores by digest."""

    path: Path
    handle: int
    done: dict[str, Scores] = field(default_factory=dict)

    def append(self, digest: str, scores: Scores) -> None:
        """Append one query's scores; on failure, removes the incomplete line and raises FailureError."""
        self._write({"query": digest, "scores": dict(scores)})
        self.done[digest] = scores

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Read the journal, or write its first line; raises MisuseError if it is of other settings."""
        lines = self.path.read_bytes().split(b"\n")
        # A crash leaves an incomplete last line.
        os.ftruncate(self.handle, sum(len(line) + 1 for line in lines[:-1]))
        if not lines[:-1]:
            self._write(settings)
            return
        if _read(lines[0]) != dict(settings):
            raise MisuseError(f"{self.path}: started with other settings or servers", hint="remove it to start over")
        for line in lines[1:-1]:
            data = _read(line)
            scores = data.get("scores")
            if not isinstance(scores, dict) or not all(k in FORMS and _finite(v) for k, v in scores.items()):
                raise MisuseError(f"{self.path}: damaged", hint="remove it to start over")
            self.done[str(data.get("query"))] = cast(Scores, scores)

    def _write(self, data: Mapping[str, Any]) -> None:
        begin = os.lseek(self.handle, 0, os.SEEK_END)
        try:
            rest = memoryview(json.dumps(data).encode() + b"\n")
            while rest:
                rest = rest[os.write(self.handle, rest) :]
        except OSError as error:
            os.ftruncate(self.handle, begin)
            raise FailureError(f"{self.path}: cannot be written: {error.strerror}") from None


@contextmanager
def journal(path: Path, settings: Mapping[str, Any]) -> Iterator[ProbeJournal]:
    """Open the journal exclusively; raises FailureError if that fails, MisuseError as `begin` does."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise FailureError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailureError(f"{path}: another calibration is writing to it") from None
        made = ProbeJournal(path, handle)
        made.begin(settings)
        yield made
    finally:
        os.close(handle)


def _read(line: bytes) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        data = None
    return data if isinstance(data, dict) else {}


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
