"""Measured scores on a card, and as `.eval_results`, from which the Hub fills its leaderboards."""

from __future__ import annotations

import re

import yaml

from dami_router.manifest.family import Variant

__all__ = ["EVAL_FILE", "eval_results", "inline", "scores_in_short", "scores_table"]

EVAL_FILE = ".eval_results/dami.yaml"
"""Where a repository keeps its measured scores."""

# `owner/dataset#task`; a task's id may have a slash: MathArena/aime_2026
# (https://huggingface.co/docs/hub/eval-results#evalyaml-specification).
_BENCHMARK = re.compile(r"([A-Za-z0-9][\w.-]*/[\w][\w.-]*)#([\w][\w./-]*)", re.ASCII)


def scores_in_short(variant: Variant) -> str:
    """Return a variant's scores as one table cell."""
    cells = [
        f"{inline(m.benchmark)}: {m.accuracy:.1%} at {m.mean_tokens:,.0f} tokens (n = {m.n})" for m in variant.measured
    ]
    return "; ".join(cells) or "not yet"


def scores_table(variant: Variant) -> str:
    """Return the card's section of scores, empty where nothing was measured."""
    if not variant.measured:
        return ""
    lines = [
        "",
        "## Measured",
        "",
        "| benchmark | accuracy | mean tokens of an answer | queries |",
        "|---|---|---|---|",
    ]
    lines += [f"| {inline(m.benchmark)} | {m.accuracy:.1%} | {m.mean_tokens:,.0f} | {m.n} |" for m in variant.measured]
    return "\n".join([*lines, ""])


def eval_results(variant: Variant) -> bytes | None:
    """Return the content of `EVAL_FILE`; None where no score is of a benchmark named `owner/dataset#task`."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    entries = []
    for m in variant.measured:
        # Other benchmarks are in the card's table alone.
        found = _BENCHMARK.fullmatch(m.benchmark)
        if found:
            notes = f"{m.mean_tokens:.0f} tokens per answer on average, n = {m.n}"
            value = round(100 * m.accuracy, 2)
            entries.append(EvalResultEntry(dataset_id=found[1], task_id=found[2], value=value, notes=notes))
    text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
    return text.encode() if entries else None


def inline(text: str) -> str:
    """Return untrusted text without the characters that have a meaning in a Markdown table."""
    return re.sub(r"[|`\[\]<>\r\n]", " ", text)
