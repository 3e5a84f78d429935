"""From a raw score to λ: an empirical quantile map, fitted on unlabelled queries.

Let r be the fraction of the calibration queries on which the model was less confident. Then

    λ = λ_max · clip(½ + (q − r)/w, 0, 1),   q = m/λ_max,   w = min(¼, 2q, 2(1−q))

so that the least confident fraction q of the queries gets λ_max, the others 0, with a soft edge of
width w between them, and queries like those of the calibration get a mean λ of m. Only the order
of the scores matters; no labels are used. The form is ours.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from dami_router.errors import MisuseError

__all__ = ["QuantileMap"]

_EDGE = 0.25


@dataclass(frozen=True)
class QuantileMap:
    """A fitted map: `scores` are the calibration's confidences, sorted; 0 < `mean_lambda` < `max_lambda` ≤ 1."""

    scores: tuple[float, ...]
    mean_lambda: float
    max_lambda: float = 1.0

    @classmethod
    def fit(cls, scores: Iterable[float], mean_lambda: float, max_lambda: float = 1.0) -> QuantileMap:
        """Fit on the confidences of unlabelled queries; any finite numbers, higher means more confident."""
        ordered = tuple(sorted(scores))
        if not ordered or not all(map(math.isfinite, ordered)):
            raise MisuseError("calibration expects at least one confidence, and finite numbers only")
        if not 0.0 < mean_lambda < max_lambda <= 1.0:
            raise MisuseError(
                f"calibration expects 0 < mean λ < largest λ ≤ 1, found mean {mean_lambda:g}, largest {max_lambda:g}"
            )
        return cls(ordered, mean_lambda, max_lambda)

    def __call__(self, score: float) -> float:
        """Return λ in [0, max_lambda] for one query's confidence."""
        if math.isnan(score):
            raise MisuseError("expected a confidence, found NaN")
        # Equal scores share the middle of their ranks; many equal scores must not all go to one end.
        rank = (bisect_left(self.scores, score) + bisect_right(self.scores, score)) / 2 / len(self.scores)
        share = self.mean_lambda / self.max_lambda
        edge = min(_EDGE, 2 * share, 2 * (1 - share))
        return self.max_lambda * min(max(0.5 + (share - rank) / edge, 0.0), 1.0)
