"""The ways of grading. Each takes a final answer without its thoughts, and what was expected.

Where an answer is marked (`####`, `\\boxed{}`), only that is graded. Numbers may be written in any usual
way; without a mark, `numeric` takes the last number of the text, as is common practice for GSM8K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dami_router.grading.answers import final_answer, marked
from dami_router.grading.numbers import last_number, only_number, same_number

__all__ = ["Exact", "Grader", "Numeric"]


class Grader(Protocol):
    """Decides whether an answer is right."""

    @property
    def name(self) -> str:
        """What the option and the reports call it."""
        ...

    def unfit(self, expected: str) -> str | None:
        """Say why nothing can be compared with this expected answer; None where it can."""
        ...

    def grade(self, answer: str, expected: str) -> float:
        """Return 1.0 for a right answer, 0.0 for a wrong one; takes bounded time."""
        ...

    def close(self) -> None:
        """End what it started."""
        ...


@dataclass(frozen=True)
class Exact:
    """Right is what is equal, but for white space."""

    name: str = "exact"

    def unfit(self, expected: str) -> str | None:
        """Anything can be compared."""
        return None if expected.strip() else "is empty"

    def grade(self, answer: str, expected: str) -> float:
        """Compare the whole answer, and the marked one."""
        return float(_squeezed(expected) in (_squeezed(answer), _squeezed(final_answer(answer))))

    def close(self) -> None:
        """Nothing was started."""


@dataclass(frozen=True)
class Numeric:
    """Right is the same number."""

    name: str = "numeric"

    def unfit(self, expected: str) -> str | None:
        """Only a number can be compared."""
        return None if only_number(expected) is not None else "is not one number"

    def grade(self, answer: str, expected: str) -> float:
        """Compare numbers: the marked one, else the last of the text."""
        wanted, mark = only_number(expected), marked(answer)
        found = last_number(answer) if mark is None else only_number(mark) or last_number(mark)
        return float(wanted is not None and found is not None and same_number(found, wanted))

    def close(self) -> None:
        """Nothing was started."""


def _squeezed(text: str) -> str:
    return " ".join(text.split())
