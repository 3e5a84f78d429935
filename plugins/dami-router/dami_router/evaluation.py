"""What a choice of λ for each query would have given, computed from rollouts.

Every query must have been answered by every variant, so that any choice can be looked up.
Intervals are percentile bootstraps over queries (2,000 resamples, fixed seed).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dami_router.errors import MisuseError
from dami_router.rollouts import Rollout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["Figure", "Grid", "Point", "dominated", "figure"]

_RESAMPLES = 2000


@dataclass(frozen=True)
class Figure:
    """A mean over queries with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """What one way of choosing λ gives: accuracy in [0, 1], tokens an answer, share of answers that think."""

    accuracy: Figure
    tokens: Figure
    think_share: float
    mean_lambda: float

    def as_dict(self) -> dict[str, Any]:
        """Return the point for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Grid:
    """Rollouts as arrays: one row a query, one column a variant in the order of `lambdas`."""

    queries: tuple[str, ...]
    lambdas: tuple[float, ...]
    correct: Floats
    tokens: Floats
    think: Floats

    @classmethod
    def of(cls, rollouts: Iterable[Rollout]) -> Grid:
        """Arrange rollouts; raises MisuseError for a query that a variant did not answer, or answered twice."""
        import numpy as np

        cells: dict[tuple[str, float], Rollout] = {}
        for rollout in rollouts:
            key = rollout.query_id, rollout.lambda_
            if key in cells:
                raise MisuseError(f"query `{key[0]}` has two rollouts at λ={key[1]:g}")
            cells[key] = rollout
        queries = tuple(dict.fromkeys(query for query, _ in cells))
        lambdas = tuple(sorted({lambda_ for _, lambda_ in cells}))
        if missing := next(((q, x) for q in queries for x in lambdas if (q, x) not in cells), None):
            raise MisuseError(f"query `{missing[0]}` has no rollout at λ={missing[1]:g}, others have")
        if not queries:
            raise MisuseError("no rollouts")

        def column(field: str) -> Floats:
            return np.array([[float(getattr(cells[q, x], field) or 0) for x in lambdas] for q in queries])

        return cls(queries, lambdas, column("correct"), column("tokens"), column("think"))

    def static(self, lambda_: float) -> Point:
        """Return the point of one variant for every query."""
        return self.routed([lambda_] * len(self.queries))

    def routed(self, choice: Sequence[float]) -> Point:
        """Return the point of a choice of λ (one of `lambdas`) for each query, in the order of `queries`."""
        import numpy as np

        index = {lambda_: i for i, lambda_ in enumerate(self.lambdas)}
        columns = np.array([index[lambda_] for lambda_ in choice])
        rows = np.arange(len(columns))
        return Point(
            figure(self.correct[rows, columns]),
            figure(self.tokens[rows, columns]),
            float(self.think[rows, columns].mean()),
            float(np.mean(choice)),
        )

    def oracle(self) -> list[float]:
        """Return, for each query, the cheapest variant among the most correct ones: no router can do better."""
        import numpy as np

        best = self.correct.max(axis=1, keepdims=True)
        cost = np.where(self.correct == best, self.tokens, np.inf)
        return [self.lambdas[i] for i in np.argmin(cost, axis=1)]


def dominated(points: Sequence[Point]) -> list[bool]:
    """Say of each point whether another is at least as accurate and as cheap, and better in one of the two."""

    def beats(a: Point, b: Point) -> bool:
        accuracy, cost = a.accuracy.mean - b.accuracy.mean, b.tokens.mean - a.tokens.mean
        return accuracy >= 0 and cost >= 0 and (accuracy > 0 or cost > 0)

    return [any(beats(other, point) for other in points) for point in points]


def figure(values: Floats) -> Figure:
    """Return the mean of one value a query, with its 95 % percentile interval from 2,000 resamples of the queries."""
    import numpy as np

    picks = np.random.default_rng(0).integers(0, len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    return Figure(float(values.mean()), float(low), float(high))
