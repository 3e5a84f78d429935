"""From the ideal point μ to a variant with high utility: a rising step function, fitted on cross-validated μ.

Bradley–Terry averages: a query that may need little thinking or much gets a μ in between, where no variant
may be good. So μ only orders the queries; each stretch of that order gets the λ with the highest mean
utility (correct − price·tokens/scale) on it. Dynamic programming finds the exact optimum among all step
functions that never fall. The form is ours.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cuts"]

Floats = NDArray[np.float64]
_MOST_BINS = 25
_FEWEST_A_BIN = 20


@dataclass(frozen=True)
class Cuts:
    """λ is `levels[i]`, with i the number of `edges` at most μ; both rise, and there is one more level than edges."""

    edges: tuple[float, ...]
    levels: tuple[float, ...]

    @classmethod
    def fit(cls, mu: Floats, utility: Floats, lambdas: Floats) -> Cuts:
        """Fit on μ (queries,) and the utility (queries, variants) of rising `lambdas`; equal μ stay together."""
        bins = _bins(mu)
        gains = np.array([utility[part].sum(axis=0) for part in bins])
        chosen = _rising(gains)
        steps = [i for i in range(1, len(bins)) if chosen[i] != chosen[i - 1]]
        edges = tuple(float((mu[bins[i - 1]].max() + mu[bins[i]].min()) / 2) for i in steps)
        return cls(edges, tuple(float(lambdas[chosen[i]]) for i in (0, *steps)))

    def __call__(self, mu: float) -> float:
        """Return λ for one query's μ."""
        return self.levels[bisect_right(self.edges, mu)]


def _bins(mu: Floats) -> list[NDArray[np.intp]]:
    """Return the queries in order of μ, in bins of about equal size; equal μ share a bin."""
    order = np.argsort(mu, kind="stable")
    count = max(1, min(_MOST_BINS, len(mu) // _FEWEST_A_BIN))
    starts = {
        int(np.searchsorted(mu[order], mu[order][i])) for i in np.linspace(0, len(mu), count + 1)[:-1].astype(int)
    }
    return [part for part in np.split(order, sorted(starts - {0})) if len(part)]


def _rising(gains: Floats) -> list[int]:
    """Return for each bin (row) the variant (column) of the best choice that never falls from bin to bin."""
    best = gains[0]
    came: list[NDArray[np.intp]] = []
    columns = np.arange(gains.shape[1])
    for row in gains[1:]:
        # The best predecessor of variant k is the first with the largest value among 0…k.
        top = np.maximum.accumulate(best)
        came.append(np.maximum.accumulate(np.where(best >= np.concatenate([[-np.inf], top[:-1]]), columns, 0)))
        best = row + top
    chosen = [int(np.argmax(best))]
    for step in reversed(came):
        chosen.append(int(step[chosen[-1]]))
    return chosen[::-1]
