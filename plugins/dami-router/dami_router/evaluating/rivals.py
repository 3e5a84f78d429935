"""What a way of choosing must beat: the best static λ, and the best cap on thinking tokens at equal tokens.

Both are chosen on other queries than those they are compared on, fold by fold: a rival that is chosen in hindsight
would look better than anyone could have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dami_router.evaluating.scores import hull
from dami_router.rollouts.folds import fingerprint, folds_of
from dami_router.rollouts.grid import Figure, Grid, Point, figure

__all__ = ["Rival", "capped_points", "cross_fold", "over_best_cap", "over_best_static", "setting_name"]

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
_FOLDS = 5


@dataclass(frozen=True)
class Rival:
    """A choice against a rival: its accuracy minus the rival's, paired by query, and the tokens of both.

    `accuracy` and `tokens` are the rival's own means; `token_share` is the choice's tokens as a fraction of the
    rival's; `chosen`: what the rival was in the folds, such as `λ=0.6`.
    """

    name: str
    gain: Figure
    accuracy: float
    tokens: float
    token_share: float | None
    chosen: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison for JSON."""
        return asdict(self)

    def sentence(self) -> str:
        """Return the comparison in words: what the rival is and reaches, and the difference."""
        how = "chosen on other queries" + (", fold by fold" if len(self.chosen) > 1 else "")
        rival = (
            f"The {self.name}, {how} ({' or '.join(self.chosen)}): {self.accuracy:.1%} at {self.tokens:,.1f} tokens."
        )
        share = "" if self.token_share is None else f" with {self.token_share:.0%} of the tokens"
        return f"{rival} Difference: {self.gain.in_points()} points{share}."


def setting_name(lambda_: float, cap: int | None = None) -> str:
    """Return `λ=1` or `λ=1, cap 256`."""
    return f"λ={lambda_:g}" if cap is None else f"λ={lambda_:g}, cap {cap}"


def cross_fold(grid: Grid) -> tuple[Indices, ...]:
    """Return folds of the queries in which rivals are chosen; empty if there are too few queries."""
    if grid.texts:
        distinct = len(set(map(fingerprint, grid.texts)))
        return tuple(folds_of(grid.texts, min(_FOLDS, distinct))) if distinct > 1 else ()
    return tuple(np.array_split(np.arange(len(grid.queries)), _FOLDS)) if len(grid.queries) >= _FOLDS else ()


def over_best_static(grid: Grid, correct: Floats, spent: Floats, folds: Sequence[Indices]) -> Rival | None:
    """Compare a choice with the most accurate static λ; equally accurate, with the cheapest. None without folds.

    `correct` and `spent` (tokens) have one value for each query.
    """
    if not folds:
        return None
    columns = np.zeros(len(correct), dtype=np.intp)
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(correct)), fold)
        means = zip(-grid.correct[rest].mean(axis=0), grid.tokens[rest].mean(axis=0), strict=True)
        columns[fold] = min((*pair, i) for i, pair in enumerate(means))[-1]
    rows = np.arange(len(correct))
    names = [setting_name(grid.lambdas[i]) for i in np.unique(columns)]
    return _rival("best static λ", correct, spent, grid.correct[rows, columns], grid.tokens[rows, columns], names)


def over_best_cap(grid: Grid, correct: Floats, spent: Floats, folds: Sequence[Indices]) -> Rival | None:
    """Compare a choice with the best mixture of caps (none included) at the same mean tokens. None without caps.

    At fewer tokens than the cheapest cap costs, it is compared with that cap, which then spends more.
    """
    found = grid.capped
    if found is None or not folds:
        return None
    plain = [i for i, x in enumerate(grid.lambdas) if x in {lambda_ for lambda_, _ in found.settings}]
    names = [setting_name(*setting) for setting in found.settings] + [setting_name(grid.lambdas[i]) for i in plain]
    accuracy = np.hstack([found.correct, grid.correct[:, plain]])
    tokens = np.hstack([found.tokens, grid.tokens[:, plain]])
    weights = np.zeros(accuracy.shape)
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(correct)), fold)
        weights[fold] = _mixture(tokens[rest].mean(axis=0), accuracy[rest].mean(axis=0), float(spent[rest].mean()))
    used = [name for name, share in zip(names, weights.sum(axis=0), strict=True) if share > 0]
    mixed, cost = (weights * accuracy).sum(axis=1), (weights * tokens).sum(axis=1)
    return _rival("best cap on thinking tokens", correct, spent, mixed, cost, used)


def capped_points(grid: Grid) -> tuple[tuple[tuple[float, int], Point], ...]:
    """Return each λ with a cap and its point; no thoughts are counted."""
    if grid.capped is None:
        return ()
    columns = zip(grid.capped.settings, grid.capped.correct.T, grid.capped.tokens.T, strict=True)
    return tuple((s, Point(figure(c.copy()), figure(t.copy()), float("nan"), s[0])) for s, c, t in columns)


def _mixture(tokens: Floats, accuracy: Floats, target: float) -> Floats:
    """Return the weights of the most accurate mixture that costs `target` on average, or as near as there is."""
    x, y = hull(tokens, accuracy)
    corners = [int(np.flatnonzero((tokens == cost) & (accuracy == best))[0]) for cost, best in zip(x, y, strict=True)]
    weights = np.zeros(len(tokens))
    above = int(np.searchsorted(x, target))
    if above in (0, len(x)):
        weights[corners[min(above, len(x) - 1)]] = 1.0
        return weights
    share = (target - x[above - 1]) / (x[above] - x[above - 1])
    weights[corners[above - 1]], weights[corners[above]] = 1.0 - share, share
    return weights


def _rival(name: str, correct: Floats, spent: Floats, other: Floats, cost: Floats, chosen: Sequence[str]) -> Rival:
    tokens = float(cost.mean())
    share = float(spent.mean()) / tokens if tokens else None
    return Rival(name, figure(correct - other), float(other.mean()), tokens, share, tuple(chosen))
