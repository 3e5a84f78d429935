"""Estimators of λ(q): the interface, the built-in ones, and their parts.

An estimator in another package needs only the names below.
"""

from dami_router.estimators.estimator import AsksServers, Estimator
from dami_router.estimators.log_probs import EstimationError, Servers
from dami_router.estimators.query import Estimate, Query

__all__ = ["AsksServers", "Estimate", "EstimationError", "Estimator", "Query", "Servers"]
