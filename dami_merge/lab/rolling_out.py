"""Graded answers of one variant to queries of the lab."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dami_merge.lab.answering import answer
from dami_merge.lab.splits import LabQuery
from dami_merge.lab.task import grade, has_think_block
from dami_router.rollouts.records import Rollout

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

__all__ = ["graded", "roll_out"]


def roll_out(model: Qwen3ForCausalLM, queries: Sequence[LabQuery], lambda_: float, name: str) -> list[Rollout]:
    """Return the graded answers of one variant at λ to every query; ``name`` is the ``model`` of each rollout."""
    answers = answer(model, [query.text for query in queries])
    return [
        graded(query, lambda_, name, a.text, a.tokens, a.finish_reason == "stop")
        for query, a in zip(queries, answers, strict=True)
    ]


def graded(query: LabQuery, lambda_: float, name: str, text: str, tokens: int, finished: bool) -> Rollout:
    """Return one answer as a rollout; ``finished``: the model ended it itself."""
    return Rollout(
        query_id=query.id,
        query=query.text,
        lambda_=lambda_,
        correct=float(grade(text, query.expected, finished=finished)),
        tokens=tokens,
        model=name,
        answer=text,
        expected=query.expected,
        finish_reason="stop" if finished else "length",
        think=has_think_block(text),
    )
