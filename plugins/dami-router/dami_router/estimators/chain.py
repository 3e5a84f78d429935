"""A chain of estimators: the first result in time decides; the last estimator always has one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dami_router.estimators.estimator import AsksServers, Estimator
from dami_router.estimators.fixed import Fixed
from dami_router.estimators.log_probs import EstimationError, Servers
from dami_router.estimators.query import Estimate, Query

__all__ = ["Chain"]

_LOG = logging.getLogger(__name__)
_GRACE = 1.1
"""Factor on the timeout of an estimator that enforces it itself; the chain's comes a little later."""


@dataclass(frozen=True)
class Chain:
    """Run `estimators` in order, each for at most `timeout` seconds or its own limit, then `last`."""

    estimators: Sequence[Estimator]
    last: Fixed
    timeout: float = 0.5
    name: str = "chain"

    def bind(self, servers: Servers) -> Chain:
        """Return the chain with servers for the estimators that call them."""
        bound = [link.bind(servers) if isinstance(link, AsksServers) else link for link in self.estimators]
        return replace(self, estimators=tuple(bound))

    async def estimate(self, query: Query) -> Estimate:
        """Return the first result with a λ in [0, 1]; failing and slow estimators are skipped."""
        for estimator in self.estimators:
            found = await self._ask(estimator, query)
            if found is not None:
                return found
        return await self.last.estimate(query)

    async def _ask(self, estimator: Estimator, query: Query) -> Estimate | None:
        own = getattr(estimator, "timeout", None)
        limit = _GRACE * own if isinstance(own, int | float) else self.timeout
        try:
            async with asyncio.timeout(limit):
                found = await estimator.estimate(query)
            if 0.0 <= found.lambda_ <= 1.0:
                return found
            _LOG.warning("estimator %s returned λ = %g, outside [0, 1]", estimator.name, found.lambda_)
        except EstimationError:
            pass
        except TimeoutError:
            _LOG.warning("estimator %s returned no result within %g s", estimator.name, limit)
        except Exception as error:
            # A third-party estimator must not fail requests. Its message may contain the query.
            _LOG.warning("estimator %s failed: %s", estimator.name, type(error).__name__)
        return None
