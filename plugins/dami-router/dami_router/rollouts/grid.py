"""Accuracy and cost of any choice of λ per query, computed from rollouts.

The grid has an answer of every variant to every query, so that any choice can be looked up.
Intervals are percentile bootstraps over queries (fixed seed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from dami_router.errors import MisuseError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["Capped", "Figure", "Grid", "Point", "dominated", "figure", "resample_count"]

_RESAMPLES = 2000
_FEWEST = 200
_PICKS = 40_000_000
_BLOCK = 4_000_000


@dataclass(frozen=True)
class Figure:
    """A mean over queries with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def in_points(self) -> str:
        """Return a difference of accuracies in points: `+1.2 [-0.3, +2.7]`."""
        mean, low, high = (f"{round(100 * x, 1) + 0.0:+.1f}" for x in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"


@dataclass(frozen=True)
class Point:
    """The result of one way of choosing λ: accuracy in [0, 1], tokens per answer, fraction of answers that think."""

    accuracy: Figure
    tokens: Figure
    think_share: float
    mean_lambda: float

    def as_dict(self) -> dict[str, Any]:
        """Return the point for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Capped:
    """Answers with a cap on their thinking tokens: a column for each λ and cap of `settings`, ascending.

    The rows are those of the grid that it belongs to.
    """

    settings: tuple[tuple[float, int], ...]
    correct: Floats
    tokens: Floats


@dataclass(frozen=True)
class Grid:
    """Rollouts as arrays: one row per query, one column per variant in the order of `lambdas`.

    A cell is the mean over a variant's samples of a query. The queries are in the order of the fingerprints of their
    texts, then of their ids, so that nothing depends on the order of answers. `texts` are the queries' texts.
    `confidence` is Instruct's, and `probe_tokens` are the tokens that measuring it took; both are NaN where unknown.
    `capped` are further answers to the same queries, None if there are none.
    """

    queries: tuple[str, ...]
    lambdas: tuple[float, ...]
    correct: Floats
    tokens: Floats
    think: Floats
    texts: tuple[str, ...] = ()
    confidence: Floats | None = None
    probe_tokens: Floats | None = None
    capped: Capped | None = None

    def rows(self, index: Sequence[int] | NDArray[np.intp]) -> Grid:
        """Return a grid of some of the queries."""
        import numpy as np

        kept = np.asarray(index, dtype=np.intp)
        return Grid(
            tuple(self.queries[i] for i in kept), self.lambdas, self.correct[kept], self.tokens[kept], self.think[kept],
            tuple(self.texts[i] for i in kept) if self.texts else (),
            None if self.confidence is None else self.confidence[kept],
            None if self.probe_tokens is None else self.probe_tokens[kept],
            self.capped and Capped(self.capped.settings, self.capped.correct[kept], self.capped.tokens[kept]),
        )  # fmt: skip

    def at(self, lambdas: Sequence[float]) -> Grid:
        """Return a grid of some of the variants; raises MisuseError for a λ without rollouts."""
        wanted = sorted({round(x, 6) for x in lambdas})
        if strange := [x for x in wanted if x not in self.lambdas]:
            known = ", ".join(f"{x:g}" for x in self.lambdas)
            raise MisuseError(f"no rollouts at λ={strange[0]:g}", hint=f"there are some at {known}")
        kept = [self.lambdas.index(x) for x in wanted]
        return replace(
            self, lambdas=tuple(wanted), correct=self.correct[:, kept], tokens=self.tokens[:, kept],
            think=self.think[:, kept],
        )  # fmt: skip

    def static(self, lambda_: float) -> Point:
        """Return the point of one variant for every query."""
        return self.routed([lambda_] * len(self.queries))

    def routed(self, choice: Sequence[float], cost: Floats | None = None) -> Point:
        """Return the point of a choice of λ (one of `lambdas`) for each query, in the order of `queries`.

        `cost`: the tokens that choosing itself took for each query, such as a probe.
        """
        import numpy as np

        index = {lambda_: i for i, lambda_ in enumerate(self.lambdas)}
        columns = np.array([index[lambda_] for lambda_ in choice])
        rows = np.arange(len(columns))
        return Point(
            figure(self.correct[rows, columns]),
            figure(self.tokens[rows, columns] + (0.0 if cost is None else cost)),
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
    """Return for each point whether another is at least as accurate and as cheap, and better in one of the two."""

    def beats(a: Point, b: Point) -> bool:
        accuracy, cost = a.accuracy.mean - b.accuracy.mean, b.tokens.mean - a.tokens.mean
        return accuracy >= 0 and cost >= 0 and (accuracy > 0 or cost > 0)

    return [any(beats(other, point) for other in points) for point in points]


def figure(values: Floats) -> Figure:
    """Return the mean of one value per query, with its 95 % percentile interval over resamples of the queries.

    2,000 resamples; fewer (at least 200) above 20,000 queries.
    """
    import numpy as np

    n = len(values)
    rng = np.random.default_rng(0)
    resamples = resample_count(n)
    block = max(1, _BLOCK // n)
    means = np.concatenate(
        [
            values[rng.integers(0, n, size=(min(block, resamples - done), n))].mean(axis=1)
            for done in range(0, resamples, block)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Figure(float(values.mean()), float(low), float(high))


def resample_count(queries: int) -> int:
    """Return the number of bootstrap resamples for this many queries."""
    return min(_RESAMPLES, max(_FEWEST, _PICKS // queries))
