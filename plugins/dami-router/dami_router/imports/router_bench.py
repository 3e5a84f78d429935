"""RouterBench's wide tables: a row is a query, with `MODEL` (a score) and `MODEL|model_response` for each model.

The tables are published as pickles, which are never read here: unpickling runs code. Prompts and responses are Python
lists written as text. Costs are dollars, so tokens are counted.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dami_router.datasets.finding import open_table
from dami_router.errors import MisuseError
from dami_router.imports.logged import ImportChoices, LoggedAnswer, need_text, shown_value

__all__ = ["RouterBenchTable"]

RESPONSE = "|model_response"
_MAX_LITERAL = 1 << 20


class RouterBenchTable:
    """One table of many models."""

    name = "RouterBench"

    def fits(self, path: Path, first: Any) -> bool:  # noqa: ARG002
        """There is a column `prompt`, and one `MODEL|model_response`."""
        return isinstance(first, dict) and "prompt" in first and any(str(name).endswith(RESPONSE) for name in first)

    def read(self, path: Path, choices: ImportChoices) -> Iterator[LoggedAnswer]:
        """Yield the answers of the wanted models; queries of several turns are skipped, and reported once."""
        table = open_table(path)
        found = [name.removesuffix(RESPONSE) for name in table.columns if name.endswith(RESPONSE)]
        models = [model for model in found if choices.wanted(model)]
        if not models:
            raise MisuseError(f"{path}: no λ for any of its models", hint=f"--lambda '{found[0]}=0', …")
        if left := [model for model in found if model not in models]:
            choices.note(f"{path}: models without a λ are left out: {', '.join(left)}")
        columns = ["prompt", *(["sample_id"] if "sample_id" in table.columns else [])]
        columns += [name for model in models for name in (model, f"{model}{RESPONSE}")]
        if lacking := [name for name in columns if name not in table.columns]:
            raise MisuseError(f"{path}: no column `{lacking[0]:.60}`")
        skipped = 0
        for number, (where, row) in enumerate(table.rows(columns)):
            prompt = _unlisted(row.get("prompt"))
            if prompt is None:
                skipped += 1
                continue
            id = row.get("sample_id")
            for model in models:
                yield LoggedAnswer(
                    where, str(number if id is None else id), need_text(prompt, where, "prompt"), model,
                    (_unlisted(row.get(f"{model}{RESPONSE}")) or "",), score=_score(row.get(model), where, model),
                )  # fmt: skip
        if skipped:
            choices.note(f"{path}: {skipped:,} queries of several turns are left out")


def _score(value: Any, where: str, model: str) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = -1.0
    if not 0 <= score <= 1:
        raise MisuseError(f"{where}: `{model:.60}` expects a score from 0 to 1, found {shown_value(value)}")
    return score


def _unlisted(value: Any) -> str | None:
    """Return the text of a one-element list written as text, or a plain text as it is; None for several texts."""
    if not isinstance(value, str):
        return None
    if not value.startswith("[") or not value.endswith("]") or len(value) > _MAX_LITERAL:
        return value
    try:
        found = ast.literal_eval(value)  # literals only: nothing is run
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        return value
    return found[0] if len(found) == 1 else None
