"""Metrics of routing, from a grid of rollouts and a score or a choice for each query.

Sources. RouteLLM (arXiv 2406.18665) defines, for two models, PGR, the fraction of the accuracy gap between weak
and strong that is recovered; APGR, its mean over all fractions of calls to the strong model; and CPT(x), the
smallest fraction of calls that recovers x. Here APGR is the exact area under the curve, and equal scores count as
a random order among them, so that a constant score has 0.5. PerfGain, CostSave and ParetoDist are names in
common use; their exact forms here are ours, given at each function.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dami_router.choosing.policy import nearest
from dami_router.rollouts.grid import Figure, Grid, resample_count

__all__ = ["apgr", "cost_curve", "cpt", "frontier", "mixing_at", "over_mixing", "pareto_distance", "saving_at"]

Floats = NDArray[np.float64]


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
    return _hull(grid.tokens.mean(axis=0), grid.correct.mean(axis=0))


def _hull(cost: Floats, accuracy: Floats) -> tuple[Floats, Floats]:
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
        x, y = _hull(weight @ grid.tokens, weight @ grid.correct)
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


def cost_curve(grid: Grid, estimates: Sequence[float], steps: int = 41) -> list[tuple[float, float, float]]:
    """Return (shift, tokens, accuracy) for λ(q) shifted from −1 to 1: from the smallest λ for all to the largest."""
    rows = np.arange(len(estimates))
    index = {lambda_: i for i, lambda_ in enumerate(grid.lambdas)}
    points = []
    for shift in np.linspace(-1.0, 1.0, steps):
        columns = [index[nearest(min(max(x + shift, 0.0), 1.0), grid.lambdas)] for x in estimates]
        points.append(
            (float(shift), float(grid.tokens[rows, columns].mean()), float(grid.correct[rows, columns].mean()))
        )
    return points


def saving_at(curve: Sequence[tuple[float, float, float]], accuracy: float, tokens: float) -> float | None:
    """Return CostSave: the fraction of `tokens` saved by the cheapest point of a cost curve that reaches an accuracy.

    The point is chosen in hindsight, on the queries that it is reported on. None if no point reaches it.
    """
    enough = [cost for _, cost, reached in curve if reached >= accuracy - 1e-12]
    return 1.0 - min(enough) / tokens if enough and tokens > 0 else None


def _below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Return whether b is on or below the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])
