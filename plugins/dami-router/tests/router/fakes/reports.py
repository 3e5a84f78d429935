"""A small report of `dami eval`."""

from __future__ import annotations

from pathlib import Path

from dami_router.estimators.training import TrainingSettings
from dami_router.evaluating.comparison import compare, length_of_query
from dami_router.evaluating.report import write_report
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.records import Rollout


def small_report(folder: Path, title: str) -> Path:
    """Write the report on a small grid with one estimator under a long name, and return its page."""
    rows = [
        Rollout(f"q{i}", f"text {'word ' * (i % 7)}{i}", x, float(x >= (i % 3) / 2), 5 + round(50 * x))
        for i in range(60)
        for x in (0.0, 0.5, 1.0)
    ]
    grid = grid_of(rows)
    found = compare(grid, [length_of_query(grid, TrainingSettings(), 3)])
    return write_report(found, folder, title=title)
