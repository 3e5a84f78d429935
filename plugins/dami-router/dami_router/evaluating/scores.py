"""Metrics of routing, from a grid of rollouts and a score or a choice for each query.

Sources. RouteLLM (arXiv 2406.18665) defines, for two models, PGR, the fraction of the accuracy gap between weak
and strong that is recovered; APGR, its mean over all fractions of calls to the strong model; and CPT(x), the
smallest fraction of calls that recovers x. Here APGR is the exact area under the curve, and equal scores count as
a random order among them, so that a constant score has 0.5. PerfGain, CostSave and ParetoDist are names in
common use; their exact forms here are ours, given at each function.

Scores of cross-validation come from one model per fold, and compare only inside a fold: `ranks` puts them on one scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dami_router.rollouts.grid import Figure, Grid, resample_count

__all__ = [
    "apgr", "apgr_in_folds", "cost_curve", "cpt", "frontier", "hull", "mixing_at", "over_mixing", "pareto_distance",
    "ranks", "saving_at",
]  # fmt: skip

Floats = NDArray[np.float64]
Folds = Sequence[NDArray[np.intp]]
_BLOCK = 4_000_000


def ranks(score: Floats, folds: Folds = ()) -> Floats:
    """Return each score's rank inside its fold, as a fraction in (0, 1); equal scores share the middle of their ranks.

    Without folds, all queries are one fold.
    """
    out = np.zeros(len(score))
    for part in folds or (np.arange(len(score)),):
        _, group, size = np.unique(score[part], return_inverse=True, return_counts=True)
        out[part] = (np.cumsum(size) - size / 2)[group] / max(len(part), 1)
    return out


def apgr_in_folds(score: Floats, weak: Floats, strong: Floats, folds: Folds) -> tuple[Figure | None, int]:
    """Return the mean of APGR over the folds that have a gap, with its 95 % interval, and how many have none.

    The interval resamples the queries inside each fold. In a resample, a fold without a gap is left out.
    """
    kept = [part for part in folds if float((strong[part] - weak[part]).sum()) > 1e-12]
    known = [apgr(score[part], weak[part], strong[part]) for part in kept]
    if not kept:
        return None, len(folds)
    n, rng = sum(map(len, kept)), np.random.default_rng(0)
    resamples = resample_count(n)
    drawn = np.array([_apgr_resampled(score[p], strong[p] - weak[p], resamples, rng) for p in kept])
    defined = ~np.isnan(drawn)
    usable = defined.any(axis=0)
    means = np.where(defined, drawn, 0.0).sum(axis=0)[usable] / defined.sum(axis=0)[usable]
    low, high = np.quantile(means, [0.025, 0.975])
    return Figure(float(np.mean([x for x in known if x is not None])), float(low), float(high)), len(folds) - len(kept)


def _apgr_resampled(score: Floats, gain: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Return APGR of resamples of one fold's queries; NaN where a resample has no gap."""
    n = len(score)
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.nan) != 0)
    block, found = max(1, _BLOCK // n), []
    for done in range(0, resamples, block):
        picks = rng.integers(0, n, size=(min(block, resamples - done), n))
        rows = n * np.arange(len(picks))[:, None]
        weight = np.bincount((picks + rows).ravel(), minlength=picks.size).reshape(picks.shape)
        size = np.add.reduceat(weight, starts, axis=1)
        gained = np.add.reduceat(weight * gain[order], starts, axis=1)
        gap = gained.sum(axis=1)
        # Inside a group of equal scores, the order is random: the curve is straight.
        area = (size * (np.cumsum(gained, axis=1) - gained / 2)).sum(axis=1)
        found.append(np.where(gap > 1e-12, area / (n * np.where(gap > 1e-12, gap, 1.0)), np.nan))
    return np.concatenate(found)


def apgr(score: Floats, weak: Floats, strong: Floats) -> float | None:
    """Return APGR of a score (higher: the strong variant is needed more); None if strong is no better than weak."""
    curve = _recovered(score, weak, strong)
    return None if curve is None else float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))


def cpt(score: Floats, weak: Floats, strong: Floats, share: float) -> float | None:
    """Return the smallest fraction of calls to the strong variant that recovers `share` ∈ [0, 1] of the gap."""
    curve = _recovered(score, weak, strong)
    if curve is None:
        return None
    reached = np.flatnonzero(curve >= share - 1e-12)
    return float(reached[0] / (len(curve) - 1)) if len(reached) else None


def _recovered(score: Floats, weak: Floats, strong: Floats) -> Floats | None:
    """Return PGR after 0, 1, … n calls to the strong variant, in falling order of the score."""
    gap = float((strong - weak).sum())
    if gap <= 1e-12:
        return None
    values, group = np.unique(-score, return_inverse=True)
    gain = np.bincount(group, weights=strong - weak, minlength=len(values))
    size = np.bincount(group, minlength=len(values))
    # The order among equal scores is random: each gains their mean.
    each = np.repeat(gain / size, size)
    curve: Floats = np.concatenate([[0.0], np.cumsum(each)]) / gap
    return curve


def frontier(grid: Grid) -> tuple[Floats, Floats]:
    """Return tokens and accuracy of the corners of the frontier of static variants and their random mixtures."""
    return hull(grid.tokens.mean(axis=0), grid.correct.mean(axis=0))


def hull(cost: Floats, accuracy: Floats) -> tuple[Floats, Floats]:
    """Return cost and accuracy of the corners of the upper hull, by rising cost: what mixtures of points reach."""
    points = sorted(zip(cost, -accuracy, strict=True))
    hull: list[tuple[float, float]] = []
    for tokens, loss in points:
        if hull and -loss <= hull[-1][1]:
            continue
        while len(hull) > 1 and _below(hull[-2], hull[-1], (tokens, -loss)):
            hull.pop()
        hull.append((float(tokens), float(-loss)))
    x, y = zip(*hull, strict=True)
    return np.array(x), np.array(y)


def mixing_at(grid: Grid, tokens: float) -> float | None:
    """Return the accuracy of the best random mixture of static variants at a mean cost; None below the cheapest."""
    x, y = frontier(grid)
    return float(np.interp(tokens, x, y)) if tokens >= x[0] - 1e-9 else None


def over_mixing(grid: Grid, correct: Floats, tokens: Floats) -> Figure | None:
    """Return a choice's accuracy minus that of the best mixture of static variants at equal mean tokens.

    `correct` and `tokens` have one value for each query of the grid; tokens include what the choice itself cost, such
    as a probe. The 95 % interval is a paired percentile bootstrap: every resample of the queries gives a new accuracy,
    new mean tokens and a new frontier. None if the choice costs less than the cheapest variant.
    """
    mixing = mixing_at(grid, float(tokens.mean()))
    if mixing is None:
        return None
    n, rng = len(correct), np.random.default_rng(0)
    means = []
    for _ in range(resample_count(n)):
        weight = np.bincount(rng.integers(0, n, size=n), minlength=n) / n
        x, y = hull(weight @ grid.tokens, weight @ grid.correct)
        # Below the cheapest variant, interp takes the cheapest variant's accuracy.
        means.append(float(weight @ correct - np.interp(weight @ tokens, x, y)))
    low, high = np.quantile(means, [0.025, 0.975])
    return Figure(float(correct.mean()) - mixing, float(low), float(high))


def pareto_distance(grid: Grid, accuracy: float, tokens: float) -> float:
    """Return the signed distance of a point from the frontier of static variants and their mixtures; the form is ours.

    Distances are in the plane of accuracy and tokens as a fraction of the most expensive variant's. Positive: beyond
    the frontier (better than any mixture); negative: inside.
    """
    scale = max(float(grid.tokens.mean(axis=0).max()), 1e-9)
    x, y = frontier(grid)
    # The frontier continues straight down at the cheapest variant, and level after the most accurate.
    corners = np.array([[x[0] / scale, min(0.0, accuracy)], *zip(x / scale, y, strict=True)])
    corners = np.vstack([corners, [max(1.0, tokens / scale, x[-1] / scale) + 1.0, y[-1]]])
    point = np.array([tokens / scale, accuracy])
    start, along = corners[:-1], np.diff(corners, axis=0)
    length = (along**2).sum(axis=1)
    t = np.clip(((point - start) * along).sum(axis=1) / np.where(length > 0, length, 1.0), 0.0, 1.0)
    distance = float(np.sqrt(((start + t[:, None] * along - point) ** 2).sum(axis=1)).min())
    at = mixing_at(grid, tokens)
    return distance if at is None or accuracy >= at else -distance


def cost_curve(grid: Grid, rank: Floats, cost: Floats, steps: int = 41) -> list[tuple[float, float]]:
    """Return (tokens, accuracy) of the frontier's mixtures, dealt out by rank instead of at random.

    Between two neighbouring corners of the frontier, the queries with the highest ranks get the more expensive variant;
    equal ranks get it at random. `cost` has the tokens that the choice itself takes for each query. For two variants,
    this is RouteLLM's curve.
    """
    spent, accuracy = grid.tokens.mean(axis=0), grid.correct.mean(axis=0)
    x, y = frontier(grid)
    corners = [int(np.flatnonzero((spent == a) & (accuracy == b))[0]) for a, b in zip(x, y, strict=True)]
    _, group, size = np.unique(-rank, return_inverse=True, return_counts=True)
    before = (np.cumsum(size) - size)[group]
    points = [(float(x[0] + cost.mean()), float(y[0]))]
    for cheap, expensive in pairwise(corners):
        for share in np.linspace(0.0, 1.0, steps)[1:]:
            got = np.clip((share * len(rank) - before) / size[group], 0.0, 1.0)
            tokens = grid.tokens[:, cheap] + got * (grid.tokens[:, expensive] - grid.tokens[:, cheap])
            correct = grid.correct[:, cheap] + got * (grid.correct[:, expensive] - grid.correct[:, cheap])
            points.append((float((tokens + cost).mean()), float(correct.mean())))
    return points


def saving_at(curve: Sequence[tuple[float, float]], accuracy: float, tokens: float) -> float | None:
    """Return CostSave: the fraction of `tokens` saved by the cheapest point of a cost curve that reaches an accuracy.

    The point is chosen in hindsight, on the queries that it is reported on. None if no point reaches it.
    """
    enough = [cost for cost, reached in curve if reached >= accuracy - 1e-12]
    return 1.0 - min(enough) / tokens if enough and tokens > 0 else None


def _below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Return whether b is on or below the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])
