"""Answers of the live engine to the demo's queries, each at its own λ, in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dami_merge.lab import LabQuery
from dami_merge.lab.answering import MAX_NEW_TOKENS
from dami_merge.lab.rolling_out import graded
from dami_merge.lab.tiny_model import one_thread
from dami_merge.lab.tokenizer import BOS, encode
from dami_merge.live import Engine, Generation
from dami_router.rollouts.records import Rollout

__all__ = ["answer_exactly"]

_ROWS = 64
"""Rows at a time; more rows are no faster at this model size."""


def answer_exactly(pair: Path, asked: Sequence[tuple[LabQuery, float]]) -> list[Rollout]:
    """Answer each query at its λ and grade the answers; weights are widened to fp32, as for the variants."""
    engine = Engine.load(str(pair / "instruct"), str(pair / "thinking"), dtype="float32", max_rows=_ROWS)
    generations = [
        Generation(encode(BOS + query.text), lambda_, max_new_tokens=MAX_NEW_TOKENS) for query, lambda_ in asked
    ]
    with one_thread():
        answers = engine.complete(generations)
    return [
        graded(query, lambda_, "lab-live", answer.text, len(answer.tokens), answer.finish_reason == "stop")
        for (query, lambda_), answer in zip(asked, answers, strict=True)
    ]
