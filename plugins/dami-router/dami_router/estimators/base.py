"""What an estimator of λ(q) is: the seam between the router and every way of estimating.

An estimator is given a query and answers with λ in [0, 1], the evidence that it rests on, and
its own name. It may ask servers (hence `async`), and may fail: the router puts a time limit on
it and walks down a declared chain that ends in a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from dami_router.errors import FailureError

__all__ = ["Estimate", "EstimationError", "Estimator", "Query"]


class EstimationError(FailureError):
    """An estimator cannot say anything about this query; the next one in the chain is asked."""


@dataclass(frozen=True, slots=True)
class Query:
    """What the router knows of a request when it estimates.

    `text` is what the user asks last, as plain text. `effort` is the request's own hint
    (`none`, `minimal`, `low`, `medium`, `high`), None where it gives none.
    """

    text: str
    effort: str | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """λ(q) in [0, 1], who says so, and why: `evidence` holds numbers and short words, never the query."""

    lambda_: float
    estimator: str
    evidence: Mapping[str, float | str] = field(default_factory=lambda: MappingProxyType({}))


@runtime_checkable
class Estimator(Protocol):
    """Something that estimates λ(q). `name` is what configuration and response headers call it."""

    @property
    def name(self) -> str:
        """The estimator's name."""
        ...

    async def estimate(self, query: Query) -> Estimate:
        """Return λ(q) with its evidence; raises EstimationError where there is nothing to say."""
        ...
