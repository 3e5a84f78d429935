"""λ from the request's `reasoning_effort`, as in OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from dami_router.errors import MisuseError
from dami_router.estimators.log_probs import EstimationError
from dami_router.estimators.query import Estimate, Query

__all__ = ["EFFORTS", "Effort"]

EFFORTS: Mapping[str, float] = MappingProxyType(
    {"none": 0.0, "minimal": 0.1, "low": 0.3, "medium": 0.6, "high": 1.0, "xhigh": 1.0, "max": 1.0}
)
"""Default λ for each effort; the values are ours."""


@dataclass(frozen=True)
class Effort:
    """λ(q) from a table of effort to λ in [0, 1]; no result if the request has no effort."""

    lambdas: Mapping[str, float] = field(default_factory=lambda: EFFORTS)
    name: str = "effort"

    def __post_init__(self) -> None:
        for effort, lambda_ in self.lambdas.items():
            if effort not in EFFORTS or not 0.0 <= lambda_ <= 1.0:
                raise MisuseError(f"effort: expected {', '.join(EFFORTS)} with λ in [0, 1], found {effort}: {lambda_}")

    async def estimate(self, query: Query) -> Estimate:
        """Return the table's λ; raises EstimationError if the request has no known effort."""
        if query.effort is None or query.effort not in self.lambdas:
            raise EstimationError("the request has no effort from the table")
        return Estimate(self.lambdas[query.effort], self.name, {"effort": query.effort})
