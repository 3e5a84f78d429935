"""Grading: is an answer the expected one? Nothing that a model wrote is ever executed."""

from dami_router.grading.graders import GRADERS, Grader, grader_for, grader_named

__all__ = ["GRADERS", "Grader", "grader_for", "grader_named"]
