"""λ(q) for a query: what an estimator is, those of ours, and what they are made of.

The names below are all that an estimator of another package needs.
"""

from dami_router.estimators.estimator import AsksServers, Estimator
from dami_router.estimators.log_probs import EstimationError, Servers
from dami_router.estimators.query import Estimate, Query

__all__ = ["AsksServers", "Estimate", "EstimationError", "Estimator", "Query", "Servers"]
