"""Sparse rows: for each text a few numbers among very many columns, with the two products that a linear model needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SparseRows"]

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class SparseRows:
    """`count` rows over `width` columns: `values` (entries,) at `row` and `column`, in rising order of rows."""

    row: Indices
    column: Indices
    values: Floats
    count: int
    width: int

    @classmethod
    def of(cls, rows: Sequence[Mapping[int, float]], width: int) -> SparseRows:
        """Return rows given as mappings from column to value."""
        column = np.array([i for one in rows for i in one], dtype=np.intp)
        values = np.array([x for one in rows for x in one.values()], dtype=np.float64)
        return cls(np.repeat(np.arange(len(rows)), [len(one) for one in rows]), column, values, len(rows), width)

    def times(self, vector: Floats) -> Floats:
        """Return the product with one number per column: one number per row."""
        found: Floats = np.bincount(self.row, self.values * vector[self.column], self.count).astype(np.float64)
        return found

    def transposed_times(self, vector: Floats) -> Floats:
        """Return the transposed product with one number per row: one number per column."""
        found: Floats = np.bincount(self.column, self.values * vector[self.row], self.width).astype(np.float64)
        return found

    def rows(self, index: Indices) -> SparseRows:
        """Return some of the rows, in rising order of `index`."""
        new = np.full(self.count, -1)
        new[index] = np.arange(len(index))
        kept = new[self.row] >= 0
        return SparseRows(new[self.row[kept]], self.column[kept], self.values[kept], len(index), self.width)

    def columns(self, kept: Indices) -> SparseRows:
        """Return some of the columns; `kept` rises."""
        if not len(kept):
            return SparseRows(self.row[:0], self.column[:0], self.values[:0], self.count, 0)
        at = np.minimum(np.searchsorted(kept, self.column), len(kept) - 1)
        found = kept[at] == self.column
        return SparseRows(self.row[found], at[found], self.values[found], self.count, len(kept))

    def scaled(self, values: Floats) -> SparseRows:
        """Return the same entries with other values."""
        return SparseRows(self.row, self.column, values, self.count, self.width)

    def unit(self) -> SparseRows:
        """Return every row at length 1; a row of zeros stays."""
        length = np.sqrt(np.bincount(self.row, weights=self.values**2, minlength=self.count))
        return self.scaled(self.values / np.where(length > 0, length, 1.0)[self.row])

    def dense(self) -> Floats:
        """Return all entries, zeros included (count, width)."""
        out = np.zeros((self.count, self.width))
        out[self.row, self.column] = self.values
        return out
