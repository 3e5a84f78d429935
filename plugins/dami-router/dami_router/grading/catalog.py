"""The graders by name, and the default for a dataset."""

from __future__ import annotations

from collections.abc import Iterable

from dami_router.errors import MisuseError
from dami_router.grading.choices import MultipleChoice
from dami_router.grading.graders import Exact, Grader, Numeric
from dami_router.grading.mathematics import MathVerify

__all__ = ["GRADERS", "grader_for", "grader_named"]

GRADERS = ("exact", "numeric", "choice", "math-verify", "none")


def grader_named(name: str) -> Grader | None:
    """Return a grader by its name, None for `none`; raises FailureError if its package is not installed."""
    if name == "math-verify":
        return MathVerify()
    known: dict[str, Grader | None] = {
        "exact": Exact(), "numeric": Numeric(), "choice": MultipleChoice(), "none": None,
    }  # fmt: skip
    return known[name]


def grader_for(expected: Iterable[str | None]) -> str:
    """Return the default grader for these answers.

    None without answers, numeric if all are numbers, choice if all are single letters, else exact.
    """
    known = list(expected)
    if any(answer is None for answer in known):
        if any(answer is not None for answer in known):
            raise MisuseError("some questions have an expected answer and some have none", hint="--grade none")
        return "none"
    for grader in (Numeric(), MultipleChoice()):
        if all(grader.unfit(answer or "") is None for answer in known):
            return grader.name
    return "exact"
