"""Gathering of rollouts into a grid, one at a time; a row takes tens of bytes in memory.

The same rollouts in another order give the same grid, to the last bit: servers answer in any order.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dami_router.errors import MisuseError
from dami_router.rollouts.folds import fingerprint
from dami_router.rollouts.grid import Capped, Grid
from dami_router.rollouts.records import Rollout

__all__ = ["Gathering", "grid_of"]

Column = tuple[float, int | None]
"""λ, and the cap on thinking tokens, None without one."""


def grid_of(rollouts: Iterable[Rollout], *, drop_incomplete: bool = False) -> Grid:
    """Arrange rollouts as a grid.

    Raises MisuseError for a query without an answer of some variant (unless `drop_incomplete` skips such
    queries), for two answers of one variant without a `sample` number or with the same one, and for a query
    with two texts, confidences or probes.
    """
    gathered = Gathering()
    for rollout in rollouts:
        gathered.add(rollout)
    return gathered.grid(drop_incomplete=drop_incomplete)


class Gathering:
    """Collects rollouts in any order, and refuses contradictory ones."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._columns: dict[Column, int] = {}
        self._texts: list[str] = []
        self._confidence = array("d")
        self._probe = array("d")
        self._cells = (array("q"), array("q"), array("q"))  # query, variant, sample
        self._values = (array("d"), array("d"), array("d"))  # correct, tokens, think

    def add(self, rollout: Rollout) -> None:
        """Add one rollout; raises MisuseError if its query had another text, confidence or probe before."""
        row = self._rows.setdefault(rollout.query_id, len(self._rows))
        if row == len(self._texts):
            self._texts.append(rollout.query)
            self._confidence.append(float("nan"))
            self._probe.append(float("nan"))
        elif self._texts[row] != rollout.query:
            raise MisuseError(f"query `{rollout.query_id}` has two different texts", hint="use one query_id per text")
        self._keep(row, rollout, rollout.confidence, self._confidence, "confidences")
        self._keep(row, rollout, rollout.probe_tokens, self._probe, "`probe_tokens`")
        column = self._columns.setdefault((rollout.lambda_, rollout.cap), len(self._columns))
        sample = -1 if rollout.sample is None else int(rollout.sample)
        for store, index in zip(self._cells, (row, column, sample), strict=True):
            store.append(index)
        for values, value in zip(self._values, (rollout.correct, rollout.tokens, bool(rollout.think)), strict=True):
            values.append(float(value))

    def grid(self, *, drop_incomplete: bool = False) -> Grid:
        """Return the grid; raises as `grid_of` does."""
        if not self._rows:
            raise MisuseError("no rollouts")
        queries, columns = list(self._rows), list(self._columns)
        order = sorted(range(len(queries)), key=lambda i: (fingerprint(self._texts[i]), queries[i]))
        queries, texts = [queries[i] for i in order], [self._texts[i] for i in order]
        row, column, sample = (np.frombuffer(store, dtype=np.int64) for store in self._cells)
        row = np.argsort(order)[row]  # their places in that order
        by_cell = np.lexsort((sample, column, row))
        self._refuse_twice(queries, columns, row[by_cell], column[by_cell], sample[by_cell])
        cell = (row * len(columns) + column)[by_cell]
        shape = len(queries), len(columns)
        counts = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
        kept = np.arange(len(queries))
        if (counts == 0).any():
            kept = _complete(counts, queries, columns, drop_incomplete)
        plain, capped = _in_order(columns)

        def mean(values: array[float]) -> NDArray[np.float64]:
            total = np.bincount(cell, weights=np.frombuffer(values)[by_cell], minlength=counts.size).reshape(shape)
            return np.asarray((total / np.maximum(counts, 1))[kept])

        correct, tokens, think = map(mean, self._values)
        return Grid(
            tuple(queries[i] for i in kept),
            tuple(columns[i][0] for i in plain),
            *(correct[:, plain], tokens[:, plain], think[:, plain]),
            texts=tuple(texts[i] for i in kept),
            confidence=np.array(self._confidence)[order][kept],
            probe_tokens=np.array(self._probe)[order][kept],
            capped=Capped(tuple((x, cap) for x, cap in (columns[i] for i in capped) if cap is not None),
                          correct[:, capped], tokens[:, capped]) if capped else None,
        )  # fmt: skip

    @staticmethod
    def _keep(row: int, rollout: Rollout, value: float | None, known: array[float], what: str) -> None:
        if value is None:
            return
        if known[row] == known[row] and known[row] != value:
            raise MisuseError(f"query `{rollout.query_id}` has two {what}: {known[row]:g} and {value:g}")
        known[row] = value

    def _refuse_twice(
        self, queries: list[str], columns: list[Column], row: NDArray[np.int64], column: NDArray[np.int64],
        sample: NDArray[np.int64],
    ) -> None:  # fmt: skip
        same = (np.diff(row) == 0) & (np.diff(column) == 0) & (np.diff(sample) == 0)
        if not same.any():
            return
        first = int(np.argmax(same))
        raise MisuseError(
            f"query `{queries[row[first]]}` has two rollouts at {_named(columns[column[first]])}"
            f" ({int(same.sum())} duplicate rows in total)",
            hint="remove the duplicates, or number several answers to one query with `sample`: 0, 1, …",
        )


def _in_order(columns: list[Column]) -> tuple[list[int], list[int]]:
    """Return the columns without a cap by λ, and those with one by λ and cap; raises MisuseError if all have one."""
    plain = sorted((i for i, (_, cap) in enumerate(columns) if cap is None), key=lambda i: columns[i][0])
    capped = [(x, cap, i) for i, (x, cap) in enumerate(columns) if cap is not None]
    if not plain:
        raise MisuseError("every rollout has a cap on its thinking tokens; expected some without")
    return plain, [i for _, _, i in sorted(capped)]


def _named(column: Column) -> str:
    lambda_, cap = column
    return f"λ={lambda_:g}" if cap is None else f"λ={lambda_:g} with cap {cap}"


def _complete(
    counts: NDArray[np.intp], queries: list[str], columns: list[Column], drop_incomplete: bool
) -> NDArray[np.intp]:
    """Return the rows that every variant answered; raises MisuseError for others, unless they may be dropped."""
    lacking = np.flatnonzero((counts == 0).any(axis=1))
    first = lacking[0]
    if not drop_incomplete:
        empty = [column for column, count in zip(columns, counts[first], strict=True) if not count]
        column = min(empty, key=lambda column: (column[0], column[1] or 0))
        raise MisuseError(
            f"query `{queries[first]}` has no rollout at {_named(column)}, but others have"
            f" ({len(lacking):,} of {len(queries):,} queries lack a variant)",
            hint="collect the missing rollouts, or skip these queries with --drop-incomplete",
        )
    if len(lacking) == len(queries):
        raise MisuseError("no query was answered by every variant")
    return np.flatnonzero((counts > 0).all(axis=1))
