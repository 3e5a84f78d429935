"""The questions that `dami rollout` and `dami sweep` ask, with the grader for their expected answers."""

from __future__ import annotations

from dataclasses import replace

from dami_router.datasets import Dataset, Question, load_dataset
from dami_router.errors import MisuseError
from dami_router.grading import Grader, grader_for, grader_named

__all__ = ["questions_to_ask"]


def questions_to_ask(
    place: str, grade: str | None, *, limit: int | None, system: str | None, query_column: str | None,
    answer_column: str | None, config: str | None, split: str | None,
) -> tuple[Dataset, dict[str, Question], Grader | None, str]:  # fmt: skip
    """Return the first `limit` questions, all questions by id, the grader (None for `none`), and its name.

    Raises MisuseError if an expected answer cannot be compared, or if the questions have system messages beside
    `system`.
    """
    whole = load_dataset(place, query_column=query_column, answer_column=answer_column, config=config, split=split)
    found = replace(whole, questions=whole.questions[:limit])
    if system and any(question.system for question in found.questions):
        raise MisuseError("--system: the questions have system messages of their own", hint="omit --system")
    name = grade or grader_for(q.expected for q in found.questions)
    grader = grader_named(name)
    _check_expected(found, grader)
    return found, {question.id: question for question in whole.questions}, grader, name


def _check_expected(dataset: Dataset, grader: Grader | None) -> None:
    """Raise MisuseError for the first question whose expected answer the grader cannot compare."""
    if grader is None:
        return
    for question in dataset.questions:
        if question.expected is None:
            column = dataset.answer_column
            lacks = f"`{column}` is empty" if column else "there is no column of expected answers"
            raise MisuseError(f"{question.where}: {lacks}", hint="name it with --answer-column, or use --grade none")
        if why := grader.unfit(question.expected):
            hint = "--grade exact, or math-verify" if grader.name == "numeric" else None
            raise MisuseError(f"{question.where}: the expected answer {question.expected!r:.60} {why}", hint=hint)
