"""What each variant gains and costs on a query: the mean over the training queries that are most like it.

Queries are compared by the distance of their features: the plain numbers, standardised, and the text's vector. How many
neighbours are averaged is chosen on held-out folds. A strong baseline of the routing literature; the form is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dami_router.estimators.linear import Design
from dami_router.estimators.sparse import SparseRows
from dami_router.estimators.trained import CrossFit, Values

__all__ = ["COUNTS", "Neighbours", "fit_neighbours"]

Floats = NDArray[np.float64]
COUNTS = (25, 50, 100, 200)
_BLOCK = 256


@dataclass(frozen=True)
class _Index:
    """Training queries' features, their squared lengths, and their words by bucket: bucket i is `starts[i]` onwards."""

    dense: Floats
    length: Floats
    starts: NDArray[np.intp]
    row: NDArray[np.intp]
    entries: Floats

    def add_words(self, near: Floats, words: SparseRows) -> None:
        """Add twice the product of each query's words with those of all training queries; only its buckets are read."""
        bounds = np.searchsorted(words.row, np.arange(words.count + 1))
        for i in range(words.count):
            own = slice(bounds[i], bounds[i + 1])
            spans = [slice(self.starts[c], self.starts[c + 1]) for c in words.column[own]]
            if spans:
                weight = np.repeat(words.values[own], [s.stop - s.start for s in spans])
                at = np.concatenate([self.row[s] for s in spans])
                products = weight * np.concatenate([self.entries[s] for s in spans])
                near[i] += 2.0 * np.bincount(at, products, near.shape[1])


@dataclass(frozen=True)
class Neighbours:
    """The training queries' features and what their variants gained and cost.

    `dense` (queries, numbers); `row`, `column` and `entries` (entries,) are the sparse words of `width` buckets;
    `targets` (queries, 2·variants): gains of all variants, then costs. `count` of them are averaged.
    """

    dense: NDArray[np.float32]
    row: NDArray[np.int32]
    column: NDArray[np.int32]
    entries: NDArray[np.float32]
    targets: NDArray[np.float32]
    width: int
    count: int

    @classmethod
    def of(cls, design: Design, targets: Floats, count: int) -> Neighbours:
        """Keep the features and `targets` of queries."""
        words = design.sparse
        return cls(
            design.dense.astype(np.float32), words.row.astype(np.int32), words.column.astype(np.int32),
            words.values.astype(np.float32), targets.astype(np.float32), words.width, count,
        )  # fmt: skip

    @cached_property
    def _index(self) -> _Index:
        dense, entries = self.dense.astype(np.float64), self.entries.astype(np.float64)
        length = (dense**2).sum(axis=1) + np.bincount(self.row, entries**2, len(dense))
        order = np.argsort(self.column, kind="stable")
        starts = np.searchsorted(self.column[order], np.arange(self.width + 1))
        return _Index(dense, length, starts, self.row[order].astype(np.intp), entries[order])

    def values(self, design: Design) -> Values:
        """Return what is expected of each variant on each query."""
        (found,) = self.means(design, (self.count,))
        half = self.targets.shape[1] // 2
        return Values(found[:, :half], found[:, half:])

    def means(self, design: Design, counts: Sequence[int]) -> Floats:
        """Return the mean targets of each number of neighbours (counts, queries, 2·variants)."""
        out = np.zeros((len(counts), len(design.dense), self.targets.shape[1]))
        index = self._index
        for begin in range(0, len(design.dense), _BLOCK):
            rows = np.arange(begin, min(begin + _BLOCK, len(design.dense)))
            part = design.rows(rows)
            # |a − b|² = |a|² + |b|² − 2ab, and the query's own |a|² changes no order.
            near = 2.0 * (part.dense @ index.dense.T) - index.length
            index.add_words(near, part.sparse)
            most = min(max(counts), near.shape[1])
            best = np.argpartition(-near, most - 1, axis=1)[:, :most]
            best = np.take_along_axis(best, np.argsort(-np.take_along_axis(near, best, axis=1), axis=1), axis=1)
            running = np.cumsum(self.targets[best].astype(np.float64), axis=1)
            for i, count in enumerate(counts):
                k = min(count, most)
                out[i, rows] = running[:, k - 1] / k
        return out


def fit_neighbours(design: Design, targets: Floats, folds: Sequence[NDArray[np.intp]]) -> CrossFit:
    """Keep all queries, and choose how many neighbours to average on held-out folds."""
    every, half = np.arange(len(targets)), targets.shape[1] // 2
    held = np.zeros((len(COUNTS), *targets.shape))
    for fold in folds:
        rest = np.setdiff1d(every, fold)
        held[:, fold] = Neighbours.of(design.rows(rest), targets[rest], 1).means(design.rows(fold), COUNTS)
    best = int(np.argmin(((held - targets)[:, :, :half] ** 2).sum(axis=(1, 2))))
    return CrossFit.of(Neighbours.of(design, targets, COUNTS[best]), held[best], targets, {"neighbours": COUNTS[best]})
