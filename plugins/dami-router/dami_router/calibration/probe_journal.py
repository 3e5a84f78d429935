"""The journal of measurements, beside the map to be written: an interrupted calibration resumes from it.

One line per query: its digest, its scores and what its probes cost, no text. The first line holds the settings; a
journal of other settings is refused.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from dami_router.errors import FailureError, MisuseError
from dami_router.estimators.calibrated import FORMS, Form
from dami_router.shared.durable import held

__all__ = ["ProbeJournal", "Probed", "journal"]


@dataclass(frozen=True)
class Probed:
    """One query's score in each form, and the tokens that the probes of that form generated."""

    scores: Mapping[Form, float]
    tokens: Mapping[Form, float]


@dataclass
class ProbeJournal:
    """An open journal; `done` has its measurements by digest."""

    path: Path
    handle: int
    done: dict[str, Probed] = field(default_factory=dict)

    def append(self, digest: str, found: Probed) -> None:
        """Append one query's measurements; on failure, removes the incomplete line and raises FailureError."""
        self._write({"query": digest, "scores": dict(found.scores), "tokens": dict(found.tokens)})
        self.done[digest] = found

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Read the journal, or write its first line; raises MisuseError if it is of other settings."""
        lines = self.path.read_bytes().split(b"\n")
        # A crash leaves an incomplete last line.
        os.ftruncate(self.handle, sum(len(line) + 1 for line in lines[:-1]))
        if not lines[:-1] or (len(lines) == 2 and _read(lines[0]).keys() == settings.keys()):  # nothing measured
            os.ftruncate(self.handle, 0)
            self._write(settings)
            return
        if _read(lines[0]) != dict(settings):
            raise MisuseError(f"{self.path}: started with other settings or servers", hint="remove it to start over")
        for line in lines[1:-1]:
            data = _read(line)
            scores, tokens = data.get("scores"), data.get("tokens")
            if not _by_form(scores) or not _by_form(tokens) or set(scores) != set(tokens):
                raise MisuseError(f"{self.path}: damaged", hint="remove it to start over")
            self.done[str(data.get("query"))] = Probed(scores, tokens)

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
    """Open the journal exclusively, and remove it if it is still empty in the end.

    Raises FailureError if it cannot be opened, MisuseError as `begin` does.
    """
    with held(path, FailureError(f"{path}: another calibration is writing to it")) as handle:
        made = ProbeJournal(path, handle)
        made.begin(settings)
        try:
            yield made
        finally:
            if not made.done:
                path.unlink(missing_ok=True)


def _read(line: bytes) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        data = None
    return data if isinstance(data, dict) else {}


def _by_form(data: object) -> TypeGuard[Mapping[Form, float]]:
    return isinstance(data, dict) and all(key in FORMS and _finite(value) for key, value in data.items())


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
