"""What the page at `/ui` shows, as JSON: the family with its measured figures, and the router's state now."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from dami_router.choosing.ordering import Wanted
from dami_router.choosing.policy import Figures
from dami_router.config.config_advice import left_out
from dami_router.config.specs import RouterConfig, VariantSpec
from dami_router.evaluating.frontier_file import FrontierFile, FrontierPoint, Range
from dami_router.messages.pinning import LIVE
from dami_router.router import Router
from dami_router.upstream.fleet import Replica
from dami_router.version import __version__

__all__ = ["PageData", "measured_frontiers", "wilson"]

_Z = 1.959964
"""The standard normal quantile of a 95 % interval."""


@dataclass(frozen=True)
class PageData:
    """Answers the page's two questions. `reports` are shown beside the manifest's figures."""

    reports: Sequence[FrontierFile] = field(default=())

    def family(self, router: Router) -> Mapping[str, Any]:
        """Return what does not change while the router runs."""
        config = router.config
        frontiers = [*self.reports, *measured_frontiers(config)]
        return {
            "name": config.name,
            "version": __version__,
            "estimators": [estimator.name for estimator in config.estimator.estimators],
            "fixed": config.estimator.last.lambda_,
            "any_lambda": any(backend.protocol == LIVE for backend in config.backends),
            "opens_think_from": _opens_think_from(router),
            "variants": [_variant(router, variant) for variant in config.variants],
            "frontiers": [frontier.model_dump(by_alias=True) for frontier in frontiers],
        }

    def now(self, router: Router, registry: CollectorRegistry) -> Mapping[str, Any]:
        """Return the state of every server, and all metrics: name → list of (labels, value)."""
        return {"servers": [_server(router, r) for r in router.fleet.replicas], "metrics": _metrics(registry)}


def measured_frontiers(config: RouterConfig) -> list[FrontierFile]:
    """Return the manifest's figures, one frontier for each benchmark, with Wilson's interval of accuracy from n."""
    beaten = set(left_out(config))
    benchmarks = dict.fromkeys(name for variant in config.variants for name in variant.figures)
    found = []
    for name in benchmarks:
        those = [(variant, variant.figures[name]) for variant in config.variants if name in variant.figures]
        points = [_measured(variant, figures, variant.id in beaten) for variant, figures in those]
        sizes = {figures.n for _, figures in those}
        queries = sizes.pop() if len(sizes) == 1 else None
        found.append(FrontierFile(title=name[:200], queries=queries, points=points))
    return found


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a share in [0, 1] of n ≥ 1 trials."""
    z2 = _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _measured(variant: VariantSpec, figures: Figures, beaten: bool) -> FrontierPoint:
    low, high = wilson(figures.accuracy, figures.n) if figures.n else (None, None)
    accuracy = Range(mean=figures.accuracy, low=low, high=high)
    return FrontierPoint.model_validate(
        {
            "kind": "variant", "name": variant.id, "lambda": min(max(variant.lambda_, 0.0), 1.0), "accuracy": accuracy,
            "tokens": Range(mean=figures.mean_tokens), "dominated": beaten,
        }
    )  # fmt: skip


def _variant(router: Router, variant: VariantSpec) -> Mapping[str, Any]:
    return {
        "id": variant.id, "lambda": variant.lambda_, "served": router.fleet.standing_for(variant.id) is not None,
        "opens_think": variant.opens_think,
    }  # fmt: skip


def _opens_think_from(router: Router) -> float | None:
    """Return the λ from which a live server's template ends inside a `<think>` block; None where none does."""
    told = (r.identity.info.get("live") for r in router.fleet.replicas if r.live and r.identity)
    least = (live.get("opens_think_from") for live in told if isinstance(live, dict))
    return min((float(x) for x in least if isinstance(x, int | float)), default=None)


def _server(router: Router, replica: Replica) -> Mapping[str, Any]:
    return {
        "variant": replica.variant.id,
        "lambda": None if replica.live else replica.variant.lambda_,
        "url": replica.spec.url,
        "protocol": replica.spec.protocol,
        "health": replica.health,
        "trouble": replica.trouble,
        "model": _identity(replica),
        "breaker": replica.breaker.state,
        "outstanding": replica.outstanding,
        "instead": _instead(router, replica),
    }


def _identity(replica: Replica) -> str | None:
    """Return what the server said that it has: a model, or the names of a live server's two endpoints."""
    if replica.identity is None:
        return None
    live = replica.identity.info.get("live")
    sides = [live.get(side) for side in ("instruct", "thinking")] if replica.live and isinstance(live, dict) else []
    names = [side["name"] for side in sides if isinstance(side, dict) and isinstance(side.get("name"), str)]
    return " + ".join(names) if len(names) == len(("instruct", "thinking")) else replica.identity.model


def _instead(router: Router, replica: Replica) -> str | None:
    """Return the variant that takes the requests of this replica's λ while it is down; None where none can."""
    offered = {r.variant.id for r in router.fleet.replicas if r is not replica and r.usable and r.health == "alive"}
    if not offered or replica.variant.id in offered:
        return replica.variant.id if offered else None
    if replica.live:
        return "nearest"
    wanted = Wanted(replica.variant.lambda_, budgeted=False, draw=0.0, conversation=None, follow_up=False)
    return router.ordering.order(wanted, offered)[1][0]


def _metrics(registry: CollectorRegistry) -> Mapping[str, Any]:
    found: defaultdict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
    for name, labels, value in _samples(registry):
        found[name].append((labels, value))
    return found


def _samples(registry: CollectorRegistry) -> Iterator[tuple[str, Mapping[str, str], float]]:
    for metric in registry.collect():
        for sample in metric.samples:
            if not sample.name.endswith("_created") and math.isfinite(sample.value):
                yield sample.name, sample.labels, sample.value
