"""Graded answers of one variant to the lab's queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dami_merge.lab.answering import answer
from dami_merge.lab.splits import Query
from dami_merge.lab.task import grade
from dami_router.rollouts import Rollout

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

__all__ = ["roll_out"]


def roll_out(model: Qwen3ForCausalLM, queries: Sequence[Query], lambda_: float, name: str) -> list[Rollout]:
    """Return every query answered by one variant at λ and graded; ``name`` goes into each rollout as ``model``."""
    answers = answer(model, [query.text for query in queries])
    return [
        Rollout(
            query_id=query.id,
            query=query.text,
            lambda_=lambda_,
            correct=float(grade(a.text, query.expected, finished=a.finish_reason == "stop")),
            tokens=a.tokens,
            model=name,
            answer=a.text,
            expected=query.expected,
            finish_reason=a.finish_reason,
            think=a.think,
        )
        for query, a in zip(queries, answers, strict=True)
    ]
