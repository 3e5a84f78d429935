"""Grading: compare an answer with the expected one. Nothing that a model wrote is ever executed."""

from dami_router.grading.catalog import GRADERS, grader_for, grader_named
from dami_router.grading.graders import Grader

__all__ = ["GRADERS", "Grader", "grader_for", "grader_named"]
