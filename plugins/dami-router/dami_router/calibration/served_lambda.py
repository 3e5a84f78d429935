"""The λ at which a router answers, given λ(q): the same rule, without servers, budgets or conversations."""

from __future__ import annotations

from dami_router.calibration.fitting import Rule
from dami_router.choosing.policy import choose
from dami_router.messages.pinning import LIVE
from dami_router.router import Router

__all__ = ["largest", "rule_of"]


def largest(router: Router) -> float:
    """Return the largest λ at which the router answers."""
    top = router.config.policy.lambda_max
    return top if router.fleet.of(LIVE) else rule_of(router)(top, 0.0)


def rule_of(router: Router) -> Rule:
    """Return the router's rule: apply the limits to λ(q), then take the variant's λ; a live server uses λ(q) itself."""
    policy = router.config.policy
    served = {v.id for v in router.config.variants if router.fleet.of(v.id)}
    ids = (router.ordering.considered & served) or served
    lambdas = sorted({v.lambda_ for v in router.config.variants if v.id in ids})
    live = bool(router.fleet.of(LIVE))

    def rule(lambda_: float, draw: float) -> float:
        bounded = min(max(lambda_, policy.lambda_min), policy.lambda_max)
        return bounded if live else choose(bounded, lambdas, policy.rule, draw)

    return rule
