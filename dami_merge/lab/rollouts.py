"""Graded answers of one variant, in the rollout format that the router's tools read: one JSON object a line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dami_merge.lab.answering import answer
from dami_merge.lab.splits import Query
from dami_merge.lab.task import grade

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

__all__ = ["Rollout", "read_rollouts", "roll_out", "write_rollouts"]

Rollout = dict[str, Any]
"""``query_id, query, lambda, correct, tokens, answer, expected, finish_reason, think, model``."""


def roll_out(model: Qwen3ForCausalLM, queries: Sequence[Query], lambda_: float, name: str) -> list[Rollout]:
    """Every query answered by one variant at λ and graded; ``name`` goes into each rollout as ``model``."""
    answers = answer(model, [query.text for query in queries])
    return [
        {
            "query_id": query.id,
            "query": query.text,
            "lambda": lambda_,
            "correct": grade(a.text, query.expected, finished=a.finish_reason == "stop"),
            "tokens": a.tokens,
            "answer": a.text,
            "expected": query.expected,
            "finish_reason": a.finish_reason,
            "think": a.think,
            "model": name,
        }
        for query, a in zip(queries, answers, strict=True)
    ]


def write_rollouts(rollouts: Iterable[Rollout], file: Path) -> None:
    """Write rollouts as gzipped JSON lines; the same rollouts give the same bytes."""
    lines = "".join(json.dumps(r, separators=(",", ":"), ensure_ascii=False) + "\n" for r in rollouts)
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(gzip.compress(lines.encode(), compresslevel=9, mtime=0))
    partial.replace(file)


def read_rollouts(file: Path) -> Iterator[Rollout]:
    """The rollouts of a gzipped JSON-lines file, one by one."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
