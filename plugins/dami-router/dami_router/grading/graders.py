"""The graders. Each compares an answer without thoughts with the expected one.

If an answer is marked (`####`, `\\boxed{}`), only the marked part is graded. Numbers may be written in any
common way; without a mark, `numeric` takes the last number of the text, as is common practice for GSM8K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dami_router.grading.answers import final_answer, marked
from dami_router.grading.numbers import last_number, only_number, same_number

__all__ = ["Exact", "Grader", "Numeric"]


class Grader(Protocol):
    """Decides whether an answer is correct."""

    @property
    def name(self) -> str:
        """Its name in options and reports."""
        ...

    def unfit(self, expected: str) -> str | None:
        """Return why this expected answer cannot be compared; None if it can."""
        ...

    def grade(self, answer: str, expected: str) -> float:
        """Return 1.0 for a correct answer, 0.0 for a wrong one, in bounded time."""
        ...

    def close(self) -> None:
        """Stop any process that the grader started."""
        ...


@dataclass(frozen=True)
class Exact:
    """Correct if equal up to white space."""

    name: str = "exact"

    def unfit(self, expected: str) -> str | None:
        """Any non-empty text can be compared."""
        return None if expected.strip() else "is empty"

    def grade(self, answer: str, expected: str) -> float:
        """Compare the whole answer and the marked one."""
        return float(_squeezed(expected) in (_squeezed(answer), _squeezed(final_answer(answer))))

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Numeric:
    """Correct if it is the same number."""

    name: str = "numeric"

    def unfit(self, expected: str) -> str | None:
        """Only numbers can be compared."""
        return None if only_number(expected) is not None else "is not a single number"

    def grade(self, answer: str, expected: str) -> float:
        """Compare numbers: the marked one, else the last in the text."""
        wanted, mark = only_number(expected), marked(answer)
        found = last_number(answer) if mark is None else only_number(mark) or last_number(mark)
        return float(wanted is not None and found is not None and same_number(found, wanted))

    def close(self) -> None:
        """Do nothing."""


def _squeezed(text: str) -> str:
    return " ".join(text.split())
