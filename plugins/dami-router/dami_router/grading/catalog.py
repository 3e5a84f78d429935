"""The graders by name, and the default for a dataset."""

from __future__ import annotations

from collections.abc import Iterable

from dami_router.errors import MisuseError
from dami_router.grading.graders import Exact, Grader, Numeric
from dami_router.grading.mathematics import MathVerify

__all__ = ["GRADERS", "grader_for", "grader_named"]

GRADERS = ("exact", "numeric", "math-verify", "none")


def grader_named(name: str) -> Grader | None:
    """Return a grader by its name, None for `none`; raises FailureError if its package is not installed."""
    if name == "math-verify":
        return MathVerify()
    known: dict[str, Grader | None] = {"exact": Exact(), "numeric": Numeric(), "none": None}
    return known[name]


def grader_for(expected: Iterable[str | None]) -> str:
    """Return the default grader for these answers: none without answers, numeric if all are numbers, else exact."""
    known = list(expected)
    if any(answer is None for answer in known):
        if any(answer is not None for answer in known):
            raise MisuseError("some questions have an expected answer and some have none", hint="--grade none")
        return "none"
    return "numeric" if all(Numeric().unfit(answer or "") is None for answer in known) else "exact"
