"""Reading of rollouts for the commands: a file of rows, and optionally a file of Instruct's confidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dami_router.errors import FailureError, MisuseError
from dami_router.estimators.confidence import Confidence
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.grid import Grid
from dami_router.rollouts.records import read_rollouts
from dami_router.shared.suggestions import amount

__all__ = ["Confidences", "read_confidence", "read_grid"]

Confidences = dict[str, tuple[float, float | None]]
"""By query_id: Instruct's confidence, and the tokens of the probe that measured it, None where unknown."""


def read_grid(
    rollouts: Path,
    confidence: Path | None = None,
    *,
    probe_tokens: float | None = None,
    drop_incomplete: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Grid:
    """Return a file's rollouts as a grid, with the confidences of another file if one is given.

    `probe_tokens` is the cost of a query's confidence where neither file states it; by default, the longest probe that
    the router sends unless configured. `note` is told of ignored fields and of that default. Raises MisuseError if
    either file is invalid, FailureError if numpy is missing.
    """
    try:
        import numpy as np
    except ImportError:
        raise FailureError("training and evaluation need numpy", hint="pip install 'dami-router[eval]'") from None
    grid = grid_of(read_rollouts(rollouts, note), drop_incomplete=drop_incomplete)
    if confidence is not None:
        known = read_confidence(confidence)
        lacking = [query for query in grid.queries if query not in known]
        if lacking:
            some = f"{amount(len(lacking), 'query', 'queries')}, among them `{lacking[0]}`"
            raise MisuseError(f"{confidence}: has no confidence for {some}")
        found = np.array([[x, np.nan if t is None else t] for x, t in (known[query] for query in grid.queries)])
        grid = replace(grid, confidence=found[:, 0], probe_tokens=found[:, 1])
    return _with_cost(grid, probe_tokens, note)


def _with_cost(grid: Grid, tokens: float | None, note: Callable[[str], None]) -> Grid:
    """Return the grid with a cost for every known confidence."""
    import numpy as np

    if grid.confidence is None or grid.probe_tokens is None:
        return grid
    unknown = ~np.isnan(grid.confidence) & np.isnan(grid.probe_tokens)
    if not unknown.any():
        return grid
    if tokens is None:
        tokens = Confidence.tokens
        note(
            f"{int(unknown.sum()):,} confidences do not say how many tokens their probe took: {tokens:g} each are"
            " counted (--probe-tokens)"
        )
    return replace(grid, probe_tokens=np.where(unknown, tokens, grid.probe_tokens))


def read_confidence(path: Path) -> Confidences:
    """Return what a JSON object has by query_id: a number in [0, 1], or an object with `confidence` and `tokens`.

    Raises MisuseError for anything else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "`dami calibrate --confidence FILE` writes one"
        raise MisuseError(f"{path}: cannot be read: {error.strerror}", hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise MisuseError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise MisuseError(f"{path}: expected a JSON object from query_id to a number in [0, 1]")
    return {query: _confidence(value, f"{path}: `{query:.40}`") for query, value in data.items()}


def _confidence(value: Any, where: str) -> tuple[float, float | None]:
    tokens = None
    if isinstance(value, dict) and set(value) == {"confidence", "tokens"}:
        value, tokens = value["confidence"], value["tokens"]
        if not _number(tokens, 1e9):
            raise MisuseError(f"{where}: `tokens` expects a number of at least 0, found {tokens!r:.40}")
    if not _number(value, 1.0):
        raise MisuseError(f"{where} expects a number in [0, 1], found {value!r:.40}")
    return float(value), None if tokens is None else float(tokens)


def _number(value: Any, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
