"""Plain numbers as features: each one itself, and a step at every knot.

A step is 1 if a number is above its knot. A sum over steps can take any shape in each number,
jumps included, and stays linear in the learned parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Basis"]

Floats = NDArray[np.float64]
_FURTHEST = 5.0
"""Numbers further from the mean than this many standard deviations are clipped to it."""


@dataclass(frozen=True)
class Basis:
    """`mean`, `scale` (numbers,) and `knots` (numbers, most knots; rows are padded with +inf), `centre` (steps,)."""

    mean: Floats
    scale: Floats
    knots: Floats
    centre: Floats

    @classmethod
    def fit(cls, numbers: Floats, knots: int = 16) -> Basis:
        """Put up to `knots` knots at the quantiles of each column of `numbers` (queries, columns)."""
        placed = [_knots(column, knots) for column in numbers.T]
        table = np.full((len(placed), max(1, max(map(len, placed), default=0))), np.inf)
        for row, found in zip(table, placed, strict=True):
            row[: len(found)] = found
        spread = numbers.std(axis=0)
        bare = cls(numbers.mean(axis=0), np.where(spread > 0, spread, 1.0), table, np.zeros(1))
        return cls(bare.mean, bare.scale, table, bare._steps(numbers).mean(axis=0))

    @property
    def width(self) -> int:
        """The number of features."""
        return len(self.mean) + int(np.isfinite(self.knots).sum())

    def expand(self, numbers: Floats) -> Floats:
        """Return the features (queries, width) of numbers (queries, columns)."""
        straight = np.clip((numbers - self.mean) / self.scale, -_FURTHEST, _FURTHEST)
        return np.concatenate([straight, self._steps(numbers) - self.centre], axis=1)

    def _steps(self, numbers: Floats) -> Floats:
        above = numbers[:, :, None] > self.knots
        steps: Floats = above[:, np.isfinite(self.knots)].astype(np.float64)
        return steps


def _knots(column: Floats, most: int) -> Floats:
    values = np.unique(column)
    if len(values) <= most + 1:
        return (values[1:] + values[:-1]) / 2
    quantiles = np.unique(np.quantile(column, np.linspace(0, 1, most + 2)[1:-1]))
    inner: Floats = quantiles[quantiles < values[-1]]
    return inner
