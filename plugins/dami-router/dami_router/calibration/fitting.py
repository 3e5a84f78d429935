"""Fitting of the quantile map that reaches a target mean, and its check on held-out queries."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dami_router.calibration.costs import Cost, Unit
from dami_router.errors import MisuseError
from dami_router.estimators.calibrated import Form
from dami_router.estimators.quantile import QuantileMap

__all__ = ["Fitted", "Rule", "Sample", "WantedMean", "fit"]

Rule = Callable[[float, float], float]
"""From λ(q) and a draw in [0, 1) to the λ of the variant that answers."""

LEAST = 20
"""Fewest queries for a fit."""

_STEPS = 40
_SEARCHED = 2000
"""Queries used in the search for the mean; more would only take longer."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One query: its text, its score (higher means more confident), and a draw in [0, 1) that depends only on it.

    `probe`: the tokens that measuring the score took, and will take for every query.
    """

    query: str
    score: float
    draw: float
    probe: float = 0.0


@dataclass(frozen=True)
class WantedMean:
    """The target mean, of λ or of tokens, and the largest λ of the map."""

    unit: Unit
    mean: float
    max_lambda: float


@dataclass(frozen=True)
class Fitted:
    """One form's map and its results: means in the target's unit with a 95 % interval, fractions of queries by λ."""

    form: Form
    map: QuantileMap
    wish: WantedMean
    fitted_on: int
    fitted: float
    held_out: int
    mean: float
    low: float
    high: float
    mean_lambda: float
    histogram: tuple[tuple[float, float], ...]
    reach: tuple[float, float]
    probe_tokens: float

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the map, as JSON."""
        return {
            "form": self.form, "unit": self.wish.unit, "wish": self.wish.mean, "max_lambda": self.wish.max_lambda,
            "fitted_on": self.fitted_on, "fitted": self.fitted, "held_out": self.held_out, "mean": self.mean,
            "low": self.low, "high": self.high, "mean_lambda": self.mean_lambda, "reach": list(self.reach),
            "probe_tokens": self.probe_tokens,
            "histogram": [{"lambda": x, "share": share} for x, share in self.histogram],
        }  # fmt: skip


def fit(
    form: Form, samples: Sequence[Sample], wish: WantedMean, cost: Cost, rule: Rule, held_out: float = 0.3
) -> Fitted:
    """Fit on a part of the queries and check on the rest; the split depends only on the queries.

    Raises MisuseError for too few queries, or an invalid target.
    """
    if len(samples) < LEAST:
        raise MisuseError(f"{len(samples)} measured queries; a map needs at least {LEAST}")
    ordered = sorted(samples, key=lambda sample: (sample.draw, sample.query))
    cut = max(1, round(held_out * len(ordered)))
    rest, part = ordered[:cut], ordered[cut:]
    scores = tuple(sorted(sample.score for sample in part))
    searched = part[:_SEARCHED]

    def given(mean_lambda: float, on: Sequence[Sample]) -> list[float]:
        made = QuantileMap(scores, mean_lambda, wish.max_lambda)
        return [rule(made(sample.score), sample.draw) for sample in on]

    def costs(mean_lambda: float, on: Sequence[Sample]) -> list[float]:
        # λ has no price in tokens; a mean of tokens includes the probe's.
        counted = wish.unit == "tokens"
        return [cost(s.query, x) + counted * s.probe for s, x in zip(on, given(mean_lambda, on), strict=True)]

    def mean(mean_lambda: float) -> float:
        return _mean(costs(mean_lambda, searched))

    QuantileMap.fit(scores, wish.max_lambda / 2, wish.max_lambda)  # refuses invalid scores
    means = {m: mean(m) for m in _between(0.0, wish.max_lambda)}
    near = min(means, key=lambda m: (abs(means[m] - wish.mean), m))
    step = wish.max_lambda / _STEPS
    means |= {m: mean(m) for m in _between(max(near - step, 0.0), min(near + step, wish.max_lambda))}
    best = min(means, key=lambda m: (abs(means[m] - wish.mean), m))
    lambdas, spent = given(best, rest), costs(best, rest)
    centre, half = _mean(spent), _half(spent)
    return Fitted(
        form, QuantileMap(scores, best, wish.max_lambda), wish, len(part), means[best], len(rest), centre,
        centre - half, centre + half, _mean(lambdas), _histogram(lambdas), (min(means.values()), max(means.values())),
        _mean([sample.probe for sample in samples]),
    )  # fmt: skip


def _between(low: float, high: float) -> list[float]:
    return [low + (high - low) * i / _STEPS for i in range(1, _STEPS)]


def _histogram(lambdas: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Fractions by λ; if there are many values, as of a live server, by tenths."""
    values = sorted(set(lambdas))
    if len(values) > 12:
        values = [i / 10 for i in range(11)]
        lambdas = [min(values, key=lambda v, x=x: abs(v - x)) for x in lambdas]  # type: ignore[misc]
    ordered = sorted(lambdas)
    counts = [(v, bisect_right(ordered, v) - bisect_left(ordered, v)) for v in values]
    return tuple((v, count / len(ordered)) for v, count in counts if count)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _half(values: Sequence[float]) -> float:
    """Half of a 95 % interval of the mean, by the normal approximation; 0 for one value."""
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return 1.96 * math.sqrt(variance / len(values))
