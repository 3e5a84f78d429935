"""From a raw score to λ: an empirical quantile map, fitted on unlabelled queries.

Let r be the share of the calibration queries on which the model was less confident. Then

    λ = (1 − r)^γ,   γ = 1/m − 1

so that the most confident queries get λ near 0, the least confident λ near 1, and queries like
those of the calibration get a mean λ of m. Only the order of the scores matters, no labels are
used, and m is the one knob. The form is ours.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from dami_router.errors import MisuseError

__all__ = ["QuantileMap"]


@dataclass(frozen=True)
class QuantileMap:
    """A fitted map: `scores` are the calibration's confidences, sorted; `mean_lambda` is m in (0, 1)."""

    scores: tuple[float, ...]
    mean_lambda: float

    @classmethod
    def fit(cls, scores: Iterable[float], mean_lambda: float) -> QuantileMap:
        """Fit on the confidences of unlabelled queries; any finite numbers, more is surer."""
        ordered = tuple(sorted(scores))
        if not ordered or not all(map(math.isfinite, ordered)):
            raise MisuseError("calibration expects at least one confidence, and finite numbers only")
        if not 0.0 < mean_lambda < 1.0:
            raise MisuseError(f"calibration expects a mean λ between 0 and 1, found {mean_lambda:g}")
        return cls(ordered, mean_lambda)

    def __call__(self, score: float) -> float:
        """Return λ in [0, 1] for one query's confidence."""
        if math.isnan(score):
            raise MisuseError("a confidence is not a number")
        # Equal scores share the middle of their ranks, so that many equal ones do not all go to one end.
        rank = (bisect_left(self.scores, score) + bisect_right(self.scores, score)) / 2 / len(self.scores)
        return float((1.0 - rank) ** (1.0 / self.mean_lambda - 1.0))
