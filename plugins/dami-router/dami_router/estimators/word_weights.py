"""The buckets of hashed words that were seen in training, weighted by how few queries have them.

Only buckets of at least two training queries are kept: what one query alone has says nothing about another, and the
estimator's folder stays small. A text's vector has the entry log(1 + count)·idf in each kept bucket, and length 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dami_router.estimators.sparse import Indices, SparseRows

__all__ = ["WordWeights"]

_FEWEST = 2


@dataclass(frozen=True)
class WordWeights:
    """`buckets` (kept,), rising, and the weight `idf` (kept,) > 0 of each."""

    buckets: Indices
    idf: NDArray[np.float32]

    @classmethod
    def fit(cls, counts: SparseRows) -> WordWeights:
        """Fit on the counts of n training queries: idf = log((1 + n)/(1 + queries that have the bucket)) + 1."""
        queries = np.bincount(counts.column, minlength=counts.width)
        buckets = np.flatnonzero(queries >= _FEWEST)
        idf = np.log((1 + counts.count) / (1 + queries[buckets])) + 1.0
        return cls(buckets, idf.astype(np.float32))

    def vectors(self, counts: SparseRows) -> SparseRows:
        """Return the unit vectors of texts over the kept buckets."""
        kept = counts.columns(self.buckets)
        return kept.scaled(np.log1p(kept.values) * self.idf[kept.column]).unit()
