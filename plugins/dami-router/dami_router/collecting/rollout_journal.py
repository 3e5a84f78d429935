"""The file of a run's rollouts: appended line by line, synced before a line counts, locked against a second run.

The run's settings are in `OUT.run.json` beside it. A later run with other settings, or with a dataset whose
answered questions have changed, is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dami_router.collecting.settings import QuestionSettings
from dami_router.datasets import Question
from dami_router.errors import FailureError, MisuseError
from dami_router.rollouts.records import Rollout, parse_rollout
from dami_router.shared.durable import held, sync, write_atomically
from dami_router.shared.suggestions import listed
from dami_router.version import __version__

__all__ = ["Key", "RolloutJournal", "journal", "rollouts_of"]

Key = tuple[str, float, int | None, int]
"""query_id, λ, cap, sample: the key of a rollout."""

_CHUNK = 1 << 20


class RolloutJournal:
    """An open file of rollouts; `done` has their keys."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self.done: set[Key] = set()
        self.repaired = False
        self._handle = handle

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows and sync them to disk; on failure, removes the incomplete row and raises FailureError."""
        data = "".join(json.dumps(row, separators=(",", ":"), ensure_ascii=False) + "\n" for row in rows).encode()
        begin = os.lseek(self._handle, 0, os.SEEK_END)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            os.fsync(self._handle)
        except OSError as error:
            os.ftruncate(self._handle, begin)
            raise FailureError(f"{self.path}: cannot be written: {error.strerror}", hint=_AGAIN) from None

    def check(self, questions: Mapping[str, Question], models: Mapping[float, str]) -> None:
        """Read the existing rollouts; refuses those of other questions, or of other models at one of these λ."""
        for where, row in _placed(self.path):
            key = (row.query_id, row.lambda_, row.cap, int(row.sample or 0))
            if key in self.done:
                raise MisuseError(f"{where}: the same question, λ, cap and sample as before", hint="remove one")
            question = questions.get(row.query_id)
            told = question and (question.text, question.expected, question.system)
            if told != (row.query, row.expected, row.system):
                raise MisuseError(
                    f"{where}: `{row.query_id:.60}` has another text, or is no longer in the dataset", hint=_NEW
                )
            model = models.get(row.lambda_)
            if model is not None and row.model != model:
                raise MisuseError(f"{where}: λ={row.lambda_:g} was answered by {row.model}, now by {model}", hint=_NEW)
            self.done.add(key)

    def repair(self) -> None:
        """Remove an incomplete last line, as a crash leaves it."""
        size = os.lseek(self._handle, 0, os.SEEK_END)
        end = size
        while end > 0:
            begin = max(end - _CHUNK, 0)
            found = os.pread(self._handle, end - begin, begin).rfind(b"\n")
            if found >= 0:
                end = begin + found + 1
                break
            end = begin
        if end < size:
            os.ftruncate(self._handle, end)
            os.fsync(self._handle)
            self.repaired = True

    @property
    def empty(self) -> bool:
        """Whether it has no rollouts."""
        return os.fstat(self._handle).st_size == 0


_AGAIN = "run the same command again to resume"
_NEW = "choose another --out"


@contextmanager
def journal(path: Path, settings: QuestionSettings, dataset: str) -> Iterator[RolloutJournal]:
    """Open a file of rollouts exclusively, new or to be continued.

    Raises MisuseError for a file of another run or of another tool, FailureError while another run uses it.
    """
    if path.suffix != ".jsonl":
        raise MisuseError(f"{path}: expected a name that ends in .jsonl", hint="compress it when it is complete")
    busy = FailureError(f"{path}: another run is writing to it", hint="wait, or choose another --out")
    with held(path, busy) as handle:
        opened = RolloutJournal(path, handle)
        _claim(opened, settings, dataset)
        opened.repair()
        yield opened


def rollouts_of(path: Path) -> Iterator[Rollout]:
    """Yield the rollouts of a run's file; ungraded ones have the score 0."""
    return (row for _, row in _placed(path))


def settings_path(path: Path) -> Path:
    """Return the path of a run's settings."""
    return path.with_name(f"{path.name}.run.json")


def _claim(opened: RolloutJournal, settings: QuestionSettings, dataset: str) -> None:
    path, file = opened.path, settings_path(opened.path)
    if opened.empty:
        facts = {"created_with": f"dami-router {__version__}", "dataset": dataset, "settings": settings.as_dict()}
        write_atomically(file, (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
        sync(path.parent)
        return
    try:
        known = json.loads(file.read_bytes())["settings"]
    except FileNotFoundError:
        raise MisuseError(f"{path}: exists, but not from `dami rollout`", hint="choose another --out") from None
    except (OSError, ValueError, LookupError, TypeError):
        raise MisuseError(f"{file}: not the settings of a run", hint="choose another --out") from None
    if other := settings.differences(known):
        raise MisuseError(f"{path}: was started with another {listed(other)}", hint=_NEW)


def _placed(path: Path) -> Iterator[tuple[str, Rollout]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                where = f"{path}:{number}"
                yield where, parse_rollout(_scored(line), where)
    except UnicodeDecodeError:
        raise MisuseError(f"{path}: not UTF-8 text; expected JSON lines") from None


def _scored(line: str) -> str:
    """Add a score to an ungraded row, so that it can be read as a rollout."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return line
    return json.dumps({"correct": 0, **data}) if isinstance(data, dict) and "correct" not in data else line
