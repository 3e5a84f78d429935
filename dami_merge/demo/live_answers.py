"""The demo's queries on the live engine: each at its own λ, in one batch, from two endpoints in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dami_merge.lab import LabQuery
from dami_merge.lab.answering import MAX_NEW_TOKENS
from dami_merge.lab.rolling_out import graded
from dami_merge.lab.tiny_model import one_thread
from dami_merge.lab.tokenizer import BOS, encode
from dami_merge.live import Engine, Generation
from dami_router.rollouts.grid import Point, figure
from dami_router.rollouts.records import Rollout

__all__ = ["answer_exactly"]

_ROWS = 64
"""Answers at once: more do not make a model of this size faster."""


def answer_exactly(pair: Path, asked: Sequence[tuple[LabQuery, float]]) -> Point:
    """Answer each query at its λ and return what that gives; weights are widened to fp32, as for the variants."""
    engine = Engine.load(str(pair / "instruct"), str(pair / "thinking"), dtype="float32", max_rows=_ROWS)
    generations = [
        Generation(encode(BOS + query.text), lambda_, max_new_tokens=MAX_NEW_TOKENS) for query, lambda_ in asked
    ]
    with one_thread():
        answers = engine.complete(generations)
    return _point(
        [
            graded(query, lambda_, "lab-live", answer.text, len(answer.tokens), answer.finish_reason == "stop")
            for (query, lambda_), answer in zip(asked, answers, strict=True)
        ]
    )


def _point(rollouts: Sequence[Rollout]) -> Point:
    return Point(
        figure(np.array([r.correct for r in rollouts], dtype=np.float64)),
        figure(np.array([r.tokens for r in rollouts], dtype=np.float64)),
        float(np.mean([bool(r.think) for r in rollouts])),
        float(np.mean([r.lambda_ for r in rollouts])),
    )
