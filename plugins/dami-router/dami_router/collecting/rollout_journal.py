"""The file of a run's rollouts: appended line by line, each on the disk before it counts, never two runs at once.

Beside it lies `OUT.run.json` with the settings of the run. A later run of other settings, or of a
dataset in which the answered questions read otherwise, is refused instead of mixed in.
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
from dami_router.shared.durable import sync, write_atomically
from dami_router.shared.suggestions import listed
from dami_router.version import __version__

__all__ = ["Key", "RolloutJournal", "journal", "rollouts_of"]

Key = tuple[str, float, int]
"""query_id, λ, sample: what one rollout is an answer of."""

_CHUNK = 1 << 20


class RolloutJournal:
    """An open file of rollouts. `done` are those that are in it."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self.done: set[Key] = set()
        self.repaired = False
        self._handle = handle

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows; they are on the disk when this returns. Raises FailureError, and takes half a row back."""
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
        """Take in what is there; refuse rollouts of other questions, or of other models at one of these λ."""
        for where, row in _placed(self.path):
            key = (row.query_id, row.lambda_, int(row.sample or 0))
            if key in self.done:
                raise MisuseError(f"{where}: the same question, λ and sample as an earlier line", hint="remove one")
            question = questions.get(row.query_id)
            if question is None or question.text != row.query or question.expected != row.expected:
                raise MisuseError(
                    f"{where}: `{row.query_id:.60}` was another question, or is not in the dataset any more", hint=_NEW
                )
            model = models.get(row.lambda_)
            if model is not None and row.model != model:
                raise MisuseError(f"{where}: λ={row.lambda_:g} was answered by {row.model}, now by {model}", hint=_NEW)
            self.done.add(key)

    def repair(self) -> None:
        """Cut off a last line without its end, as a crash leaves it."""
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
        """Whether nothing is in it."""
        return os.fstat(self._handle).st_size == 0


_AGAIN = "run the same command again: it goes on where it stopped"
_NEW = "give another --out"


@contextmanager
def journal(path: Path, settings: QuestionSettings, dataset: str) -> Iterator[RolloutJournal]:
    """Open a file of rollouts, new or to go on with, for this process alone.

    Raises MisuseError for a file that is another run's or nobody's, FailureError while another run has it.
    """
    if path.suffix != ".jsonl":
        raise MisuseError(f"{path}: expected a name that ends in .jsonl", hint="compress it when it is complete")
    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise FailureError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        _lock(handle, path)
        opened = RolloutJournal(path, handle)
        _claim(opened, settings, dataset)
        opened.repair()
        yield opened
    finally:
        os.close(handle)


def rollouts_of(path: Path) -> Iterator[Rollout]:
    """Yield the rollouts of a run's file; those that were not graded have the score 0."""
    return (row for _, row in _placed(path))


def settings_path(path: Path) -> Path:
    """Return where a run's settings are kept."""
    return path.with_name(f"{path.name}.run.json")


def _lock(handle: int, path: Path) -> None:
    # The kernel's: it ends with the process, however that ends.
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FailureError(f"{path}: another run is writing to it", hint="wait for it, or give another --out") from None


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
        raise MisuseError(f"{path}: already there, and not by `dami rollout`", hint="give another --out") from None
    except (OSError, ValueError, LookupError, TypeError):
        raise MisuseError(f"{file}: not the settings of a run", hint="give another --out") from None
    if other := settings.differences(known):
        raise MisuseError(f"{path}: was begun with another {listed(other)}", hint=_NEW)


def _placed(path: Path) -> Iterator[tuple[str, Rollout]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                where = f"{path}:{number}"
                yield where, parse_rollout(_scored(line), where)
    except UnicodeDecodeError:
        raise MisuseError(f"{path}: not UTF-8 text; expected JSON lines") from None


def _scored(line: str) -> str:
    """Give an ungraded row a score, so that it can be read as a rollout."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return line
    return json.dumps({"correct": 0, **data}) if isinstance(data, dict) and "correct" not in data else line
