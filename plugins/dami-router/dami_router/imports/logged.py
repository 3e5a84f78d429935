"""What every format gives: one logged answer, and the choices that a log may leave open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dami_router.datasets import Question
from dami_router.errors import MisuseError

__all__ = [
    "ImportChoices",
    "LogFormat",
    "LoggedAnswer",
    "need_text",
    "plain_score",
    "plain_tokens",
    "shown_value",
]

_MOST_TOKENS = 1e12


@dataclass(frozen=True, slots=True)
class LoggedAnswer:
    """One answer of one model to one query, as logged.

    `texts`: the answer, or several samples that share one score and one row; `model` and the file's path may say λ.
    `tokens`, `score` (0 to 1) and `expected` (any of these is correct) are empty where the log has none.
    """

    where: str
    query_id: str
    query: str
    model: str
    texts: tuple[str, ...]
    system: str | None = None
    tokens: float | None = None
    score: float | None = None
    expected: tuple[str, ...] = ()
    finish_reason: str | None = None
    sample: int | None = None
    thought: bool = False

    def __post_init__(self) -> None:
        # Half of a character, which JSON can hold and UTF-8 cannot.
        for name in ("query_id", "query", "model", "system", "finish_reason"):
            object.__setattr__(self, name, _whole(getattr(self, name)))
        for name in ("texts", "expected"):
            object.__setattr__(self, name, tuple(_whole(text) or "" for text in getattr(self, name)))


def _raised(error: MisuseError) -> None:
    raise error


@dataclass(frozen=True)
class ImportChoices:
    """The options of an import, and `note`, which is told what was chosen or skipped.

    `metric` and `filter` are lm-evaluation-harness's; `column` names the field of the query; `questions` by id are
    those of a batch file. `wanted` says which models of a table of many to read. `problem` is told of
    a choice that is missing or wrong: it raises, or reading goes on to find further errors.
    """

    metric: str | None = None
    filter: str | None = None
    column: str | None = None
    questions: dict[str, Question] = field(default_factory=dict)
    wanted: Callable[[str], bool] = lambda _: True
    note: Callable[[str], None] = lambda _: None
    problem: Callable[[MisuseError], None] = _raised


class LogFormat(Protocol):
    """One tool's logs."""

    @property
    def name(self) -> str:
        """The tool's name."""
        ...

    def fits(self, path: Path, first: Any) -> bool:
        """Return whether a file is such a log, by its first row (or the whole object of a JSON file)."""
        ...

    def read(self, path: Path, choices: ImportChoices) -> Iterator[LoggedAnswer]:
        """Yield the answers; raises MisuseError with file and row where the log is not what it should be."""
        ...


def plain_score(value: Any) -> float | None:
    """Return a score in [0, 1]: a number, or true or false; None for anything else."""
    if isinstance(value, int | float) and 0 <= value <= 1:
        return float(value)
    return None


def plain_tokens(value: Any) -> float | None:
    """Return a number of tokens, None for anything that is none."""
    # Compared before conversion: an integer of a thousand digits does not fit a float.
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS:
        return float(value)
    return None


def shown_value(value: Any) -> str:
    """Return a value for a message, shortened."""
    return "nothing" if value is None else f"{value!r:.60}"


def need_text(value: Any, where: str, name: str) -> str:
    """Return a text that must be there; raises MisuseError."""
    if not isinstance(value, str) or not value.strip():
        raise MisuseError(f"{where}: `{name}` expects text, found {shown_value(value)}")
    return value


def _whole(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "replace").decode()
