"""Ideal-point Bradley–Terry: preferences between values of λ, as a loss over a query's ideal point.

    u(q, λ) = −κ(q)·(λ − μ(q))²        P(i preferred to j) = σ(u_i − u_j)

μ(q) is the query's ideal λ, κ(q) > 0 its weight. The learned functions are 2κμ = w·x + b and
κ = exp(v·x + c) of the features x: u_i − u_j is then linear in w, and descent does not stall as it would with a μ
that saturates inside [0, 1]. If μ lies outside [0, 1], the nearest end is best.

Pairs come from rollouts by accuracy first, then efficiency:

    r = correct − min(price · tokens / scale, 1)

where `scale` is the mean length of the most expensive variant's answers, so that `price` is the accuracy
that one such answer must gain. i is preferred to j if r_i − r_j exceeds a margin; smaller differences
are ties and are dropped. A pair has the weight |r_i − r_j|: without it, the many small differences in
tokens outweigh the few in accuracy. The form is ours, not the DAMI paper's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pairs", "ideal", "loss", "preferences"]

Floats = NDArray[np.float64]

_ANCHOR = 1e-4
"""The ridge of b and c."""

_STEEPEST = 6.0
"""Bound on |log κ|; separable preferences would drive it to infinity."""


@dataclass(frozen=True)
class Pairs:
    """For each query (row) and pair i < j of variants (column): signed weights, and λ_i − λ_j, λ_i + λ_j.

    `weight` is positive if i is preferred, negative if j is, 0 for a tie.
    """

    weight: Floats
    difference: Floats
    total: Floats

    def rows(self, index: NDArray[np.intp]) -> Pairs:
        """Return the pairs of some queries."""
        return Pairs(self.weight[index], self.difference, self.total)

    @property
    def mass(self) -> float:
        """The sum of all weights, at least 0."""
        return float(np.abs(self.weight).sum())


def preferences(lambdas: Floats, correct: Floats, tokens: Floats, *, price: float, margin: float) -> Pairs:
    """Return every query's preferences between its variants; `correct` and `tokens` are (queries, variants)."""
    scale = tokens.mean(axis=0).max()
    cost = np.minimum(price * tokens / scale, 1.0) if scale > 0 else np.zeros_like(tokens)
    utility = correct - cost
    i, j = np.triu_indices(len(lambdas), 1)
    weight = utility[:, i] - utility[:, j]
    weight[np.abs(weight) <= margin] = 0.0
    return Pairs(weight, lambdas[i] - lambdas[j], lambdas[i] + lambdas[j])


def ideal(parameters: Floats, features: Floats) -> tuple[Floats, Floats]:
    """Return μ and κ for each row of features; `parameters` is [w, b, v, c]."""
    pull, kappa, _ = _shape(parameters, features)
    return pull / (2 * kappa), kappa


def loss(parameters: Floats, features: Floats, pairs: Pairs, ridge: float) -> tuple[float, Floats]:
    """Return the weighted mean of −log P(preferred variant) plus ridge/2·(|w|² + |v|²), and its gradient.

    b and c have a small ridge of their own, so that a minimum exists even if all preferences agree.
    """
    w, b, v, c = _split(parameters)
    pull, kappa, free = _shape(parameters, features)
    # u_i − u_j = (λ_i − λ_j)·(2κμ − κ·(λ_i + λ_j))
    apart = pairs.difference * (pull[:, None] - kappa[:, None] * pairs.total)
    agreed = np.sign(pairs.weight) * apart
    share = np.abs(pairs.weight) / max(pairs.mass, 1e-300)
    value = float((share * np.logaddexp(0.0, -agreed)).sum()) + 0.5 * ridge * float(w @ w + v @ v)
    value += 0.5 * _ANCHOR * (b * b + c * c)
    slope = -share * np.sign(pairs.weight) * _sigmoid(-agreed)
    by_pull = slope @ pairs.difference
    by_kappa = free * -kappa * (slope @ (pairs.difference * pairs.total))
    of_pull = np.append(features.T @ by_pull + ridge * w, by_pull.sum() + _ANCHOR * b)
    of_kappa = np.append(features.T @ by_kappa + ridge * v, by_kappa.sum() + _ANCHOR * c)
    return value, np.concatenate([of_pull, of_kappa])


def _shape(parameters: Floats, features: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return 2κμ and κ for each row, and a mask of the rows whose κ is not clipped."""
    w, b, v, c = _split(parameters)
    log_kappa = features @ v + c
    free = np.abs(log_kappa) < _STEEPEST
    return features @ w + b, np.exp(np.clip(log_kappa, -_STEEPEST, _STEEPEST)), free


def _split(parameters: Floats) -> tuple[Floats, float, Floats, float]:
    half = len(parameters) // 2
    return parameters[: half - 1], float(parameters[half - 1]), parameters[half:-1], float(parameters[-1])


def _sigmoid(x: Floats) -> Floats:
    half: Floats = 0.5 * (1.0 + np.tanh(0.5 * x))
    return half
