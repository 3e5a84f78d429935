"""What an estimator of λ(q) is: the seam between the router and every way of estimating.

An estimator is given a query and answers with λ in [0, 1], the evidence that it rests on, and
its own name. It may ask servers (hence `async`), and may fail: the router puts a time limit on
it and walks down a declared chain that ends in a constant.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from dami_router.estimators.log_probs import EstimationError, Servers
from dami_router.estimators.query import Estimate, Query

__all__ = ["AsksServers", "EstimationError", "Estimator"]


@runtime_checkable
class Estimator(Protocol):
    """Something that estimates λ(q). `name` is what configuration and response headers call it.

    An attribute `timeout` (seconds), where there is one, is the estimator's own limit in place of the chain's.
    """

    @property
    def name(self) -> str:
        """The estimator's name."""
        ...

    async def estimate(self, query: Query) -> Estimate:
        """Return λ(q) with its evidence; raises EstimationError where there is nothing to say."""
        ...


@runtime_checkable
class AsksServers(Protocol):
    """An estimator that asks servers: before the first query a router calls `bind`, and uses what that returns."""

    def bind(self, servers: Servers) -> Estimator:
        """Return the estimator with servers to ask."""
        ...
