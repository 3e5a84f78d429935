"""The interface of an estimator of λ(q).

An estimator takes a query and returns λ in [0, 1], its evidence, and its own name. It may call
servers (hence `async`), and may fail: the router sets a timeout and falls back along a declared
chain that ends in a constant.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from dami_router.estimators.log_probs import EstimationError, Servers
from dami_router.estimators.query import Estimate, Query

__all__ = ["AsksServers", "EstimationError", "Estimator"]


@runtime_checkable
class Estimator(Protocol):
    """Something that estimates λ(q). `name` is its name in configuration and response headers.

    An optional attribute `timeout` (seconds) replaces the chain's timeout.
    """

    @property
    def name(self) -> str:
        """The estimator's name."""
        ...

    async def estimate(self, query: Query) -> Estimate:
        """Return λ(q) with its evidence; raises EstimationError if it has no result."""
        ...


@runtime_checkable
class AsksServers(Protocol):
    """An estimator that calls servers: the router calls `bind` before the first query, and uses the result."""

    def bind(self, servers: Servers) -> Estimator:
        """Return the estimator with these servers."""
        ...
