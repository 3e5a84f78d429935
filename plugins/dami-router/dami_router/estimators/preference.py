"""What each variant gains and costs on a query, fitted to preferences between graded answers by least squares.

For every query and every pair i, j of its variants, two differences are known: in accuracy and in tokens. Learned are
functions g and c of the query's features with

    g_i − g_j ≈ correct_i − correct_j        c_i − c_j ≈ (tokens_i − tokens_j)/scale

i is preferred to j at a price p for tokens where g_i − p·c_i > g_j − p·c_j: the more accurate first, then the cheaper.
This is Bradley–Terry in its least-squares form. Its sum over pairs is a sum over variants of squared errors of values
that are centred per query, so that one ridge regression per variant fits all pairs, for every price at once.

Neighbouring variants answer alike. The regressions are therefore done for the principal components of the centred
values; each component has the penalty that is best on held-out folds, and is left out where the mean is better still.
The form is ours, not the DAMI paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dami_router.estimators.linear import Design, RidgePath, ridge_path
from dami_router.estimators.trained import CrossFit, Values

__all__ = ["PENALTIES", "Preference", "centred", "fit_preference"]

Floats = NDArray[np.float64]
PENALTIES = tuple(np.geomspace(0.1, 31622.0, 12).tolist())
_COMPONENTS = 4
"""Most principal components of the gains, and of the costs."""


@dataclass(frozen=True)
class Preference:
    """Linear functions, one per component.

    `dense` (components, numbers), `words` (components, buckets), `intercept` (components,). `mix` (components,
    2·variants) and `base` (2·variants,) lead to the gains of all variants, and then their costs.
    """

    dense: Floats
    words: NDArray[np.float32]
    intercept: Floats
    mix: Floats
    base: Floats

    def values(self, design: Design) -> Values:
        """Return what is expected of each variant on each query."""
        found = np.zeros((len(design.dense), len(self.base))) + self.base
        for dense, words, intercept, mix in zip(self.dense, self.words, self.intercept, self.mix, strict=True):
            found += (design.times(dense, words.astype(np.float64)) + intercept)[:, None] * mix
        half = len(self.base) // 2
        return Values(found[:, :half], found[:, half:])


def centred(correct: Floats, tokens: Floats, scale: float) -> Floats:
    """Return the gains and costs of all variants (queries, 2·variants), each centred per query."""
    gain = correct - correct.mean(axis=1, keepdims=True)
    cost = (tokens - tokens.mean(axis=1, keepdims=True)) / scale
    return np.concatenate([gain, cost], axis=1)


def fit_preference(design: Design, targets: Floats, folds: Sequence[NDArray[np.intp]]) -> CrossFit:
    """Fit the `targets` of `centred`. The model is the mean of the folds' models, so that held-out values fit it."""
    half = targets.shape[1] // 2
    base = targets.mean(axis=0)
    held, kept, mixes, penalties = np.zeros_like(targets) + base, [], [], []
    for first in (0, half):
        part = targets[:, first : first + half] - base[first : first + half]
        for direction in _directions(part):
            mix = np.zeros(2 * half)
            mix[first : first + half] = direction
            found, penalty, paths = _component(design, part @ direction, folds)
            penalties.append(None if penalty is None else PENALTIES[penalty])
            if penalty is not None:
                held += found[:, None] * mix
                kept.append([path.weights(penalty) for path in paths])
                mixes.append(mix)
    model = Preference(
        np.array([np.mean([w.dense for w in one], axis=0) for one in kept]).reshape(len(kept), design.dense.shape[1]),
        np.array([np.mean([w.sparse for w in one], axis=0) for one in kept], dtype=np.float32).reshape(
            len(kept), design.sparse.width
        ),
        np.array([np.mean([w.intercept for w in one]) for one in kept]),
        np.array(mixes).reshape(len(kept), 2 * half),
        base,
    )
    return CrossFit.of(model, held, targets, {"penalties": penalties})


def _directions(values: Floats) -> Floats:
    """Return the principal components of centred values, largest first, as unit rows."""
    _, size, rows = np.linalg.svd(values.T @ values)
    return np.array([row for row, s in zip(rows[:_COMPONENTS], size, strict=False) if s > 1e-12 * len(values)])


def _component(
    design: Design, target: Floats, folds: Sequence[NDArray[np.intp]]
) -> tuple[Floats, int | None, list[RidgePath]]:
    """Return held-out predictions of one target, the best penalty (None: the mean is better), and each fold's path."""
    every = np.arange(len(target))
    predicted, mean, paths = np.zeros((len(PENALTIES), len(target))), np.zeros(len(target)), []
    for fold in folds:
        rest = np.setdiff1d(every, fold)
        paths.append(ridge_path(design, rest, target[rest], PENALTIES))
        predicted[:, fold] = paths[-1].predictions[:, fold]
        mean[fold] = target[rest].mean()
    errors = ((predicted - target) ** 2).sum(axis=1)
    best = int(np.argmin(errors))
    if errors[best] >= ((mean - target) ** 2).sum():
        return np.zeros(len(target)), None, paths
    return predicted[best], best, paths
