"""Reading of rollouts for the commands: a file of rows, and optionally a file of Instruct's confidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dami_router.errors import FailureError, MisuseError
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.grid import Grid
from dami_router.rollouts.records import read_rollouts

__all__ = ["read_confidence", "read_grid"]


def read_grid(
    rollouts: Path,
    confidence: Path | None = None,
    *,
    drop_incomplete: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Grid:
    """Return a file's rollouts as a grid, with the confidences of another file if one is given.

    `note` is told of ignored fields. Raises MisuseError if either file is invalid, FailureError if numpy is missing.
    """
    try:
        import numpy as np
    except ImportError:
        raise FailureError("training and evaluation need numpy", hint="pip install 'dami-router[eval]'") from None
    grid = grid_of(read_rollouts(rollouts, note), drop_incomplete=drop_incomplete)
    if confidence is None:
        return grid
    known = read_confidence(confidence)
    lacking = [query for query in grid.queries if query not in known]
    if lacking:
        raise MisuseError(f"{confidence}: has no confidence for {len(lacking)} queries, among them `{lacking[0]}`")
    return replace(grid, confidence=np.array([known[query] for query in grid.queries]))


def read_confidence(path: Path) -> dict[str, float]:
    """Return the numbers in [0, 1] of a JSON object by query_id; raises MisuseError for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MisuseError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise MisuseError(f"{path}: expected a JSON object from query_id to a number in [0, 1]")
    for query, value in data.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise MisuseError(f"{path}: `{query:.40}` expects a number in [0, 1], found {value!r:.40}")
    return {query: float(value) for query, value in data.items()}
