"""Ridge regression on dense and sparse features, for a whole path of penalties at once.

For centred targets y and features X the solution is w = Xᵀa with (XXᵀ + ρ)a = y. XXᵀ is never formed: a few dozen
Lanczos steps from y give a small tridiagonal matrix T, in which every penalty ρ costs a solve of that size.
The intercept is not penalised. No learning rate and no random number: the same data give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dami_router.estimators.sparse import SparseRows

__all__ = ["Design", "LinearWeights", "RidgePath", "ridge_path"]

Floats = NDArray[np.float64]
_STEPS = 30


@dataclass(frozen=True)
class LinearWeights:
    """A fitted function: `dense` (numbers,), `sparse` (buckets,), and the intercept."""

    dense: Floats
    sparse: Floats
    intercept: float


@dataclass(frozen=True)
class Design:
    """Features of queries: `dense` (queries, numbers) and `sparse` rows over the buckets."""

    dense: Floats
    sparse: SparseRows

    def rows(self, index: NDArray[np.intp]) -> Design:
        """Return the features of some queries; `index` rises."""
        return Design(self.dense[index], self.sparse.rows(index))

    def times(self, dense: Floats, sparse: Floats) -> Floats:
        """Return the product with a weight per feature: one number per query."""
        product: Floats = self.dense @ dense + self.sparse.times(sparse)
        return product

    def transposed_times(self, vector: Floats) -> tuple[Floats, Floats]:
        """Return the transposed product with one number per query: one per number, one per bucket."""
        return vector @ self.dense, self.sparse.transposed_times(vector)


@dataclass(frozen=True)
class RidgePath:
    """The solutions for all penalties: `predictions` (penalties, all queries), and what `weights` needs."""

    predictions: Floats
    _design: Design
    _rows: NDArray[np.intp]
    _basis: Floats  # (steps, training queries)
    _solved: Floats  # (penalties, steps)
    _mean: float

    def weights(self, penalty: int) -> LinearWeights:
        """Return the solution for one penalty, by its index."""
        spread = np.zeros(len(self.predictions[0]))
        spread[self._rows] = self._solved[penalty] @ self._basis
        dense, sparse = self._design.transposed_times(spread)
        centre = self._design.times(dense, sparse)[self._rows].mean()
        return LinearWeights(dense, sparse, self._mean - float(centre))


def ridge_path(design: Design, rows: NDArray[np.intp], target: Floats, penalties: Sequence[float]) -> RidgePath:
    """Fit `target` (rows,) on some rows of a design, and predict for all of its queries.

    `penalties` are those of the sum of squared errors. `rows` rises.
    """
    mean = float(target.mean())
    basis, images, t, length = _lanczos(design, rows, target - mean)
    first = np.zeros(len(t))
    first[:1] = length
    solved = np.array([np.linalg.solve(t + p * np.eye(len(t)), first) for p in penalties])
    return RidgePath(solved @ images + mean, design, rows, basis, solved, mean)


def _lanczos(design: Design, rows: NDArray[np.intp], start: Floats) -> tuple[Floats, Floats, Floats, float]:
    """Return the Krylov basis (steps, rows) of XXᵀ, its images (steps, all queries), T, and the length of `start`."""
    length = float(np.linalg.norm(start))
    part, spread = design.rows(rows), np.zeros(len(design.dense))
    basis, images, diagonal, beside = [], [], [], [length]
    vector = start
    for _ in range(min(_STEPS, len(rows) - 1)):
        if beside[-1] <= 1e-9 * max(length, 1e-300):
            break
        basis.append(vector / beside[-1])
        spread[rows] = basis[-1]
        image = design.times(*part.transposed_times(basis[-1]))
        image -= image[rows].mean()
        images.append(image)
        vector = image[rows]
        diagonal.append(float(vector @ basis[-1]))
        for _ in range(2):  # once is not enough for orthogonality in floating point
            for other in basis:
                vector = vector - (other @ vector) * other
        beside.append(float(np.linalg.norm(vector)))
    steps = len(diagonal)
    t = np.diag(diagonal) + np.diag(beside[1:steps], 1) + np.diag(beside[1:steps], -1)
    return np.array(basis).reshape(steps, len(rows)), np.array(images).reshape(steps, len(design.dense)), t, length
