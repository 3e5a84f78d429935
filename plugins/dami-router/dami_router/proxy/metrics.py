"""What the proxy counts, for Prometheus. Labels come from the configuration and fixed lists: they are bounded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dami_router.choosing.outcome import Decision
from dami_router.proxy.histogram import Histogram
from dami_router.upstream.fleet import Fleet, Replica
from dami_router.upstream.reply import UnansweredError

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ROUTE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1)
_BREAKER = {"closed": 0.0, "half-open": 1.0, "open": 2.0}


class Metrics:
    """One registry of counters, histograms and gauges for one proxy. `expected` are variants' mean tokens, if known."""

    def __init__(
        self, fleet: Fleet, inside: Callable[[], tuple[int, int]], expected: Mapping[str, float] | None = None,
        worker: int | None = None,
    ) -> None:  # fmt: skip
        self._times = _Times()
        self._requests = _Count("dami_requests", "Requests by route, variant and status.", "route", "variant", "status")
        self._tokens = _Count("dami_tokens", "Generated tokens, as far as servers report them.", "variant")
        self._fallbacks = _Count(
            "dami_fallbacks", "Requests answered by a variant other than the chosen one.", "chosen", "answered"
        )
        self._failures = _Count("dami_upstream_failures", "Calls without an answer.", "variant", "reason")
        self._gone = _Count("dami_clients_gone", "Requests whose client left before the end.")
        self._broken = _Count("dami_broken_replies", "Replies that broke off after their first byte.", "variant")
        self._shadow = _Count(
            "dami_shadow", "Second decisions, by the variant that was chosen and the shadow's.", "chosen", "shadow"
        )
        self._shadow_tokens = _Count(
            "dami_shadow_tokens", "Tokens expected by the manifest, with both decisions.", "decision"
        )
        self._shadow_lambda = _Count("dami_shadow_lambda", "The sum of λ with both decisions.", "decision")
        self._expected, self._worker = expected or {}, worker
        self.registry = CollectorRegistry()
        counts = (self._requests, self._tokens, self._fallbacks, self._failures, self._gone, self._broken)
        for collector in (
            *counts,
            self._shadow,
            self._shadow_lambda,
            self._shadow_tokens,
            self._times,
            _Now(fleet, inside),
        ):
            self.registry.register(collector)

    def decided(self, lambda_: float, seconds: float) -> None:
        """Count a decision."""
        self._times.lambda_.observe(lambda_)
        self._times.route.observe(seconds)

    def began(self, chosen: str, answered: str, seconds: float) -> None:
        """Count a reply that began."""
        self._times.upstream[answered].observe(seconds)
        if chosen != answered:
            self._fallbacks.by[chosen, answered] += 1

    def finished(self, route: str, variant: str, status: int, seconds: float, tokens: int | None) -> None:
        """Count a request that ended."""
        self._requests.by[route, variant, _status(status)] += 1
        self._times.total.observe(seconds)
        if tokens:
            self._tokens.by[variant,] += tokens

    def failed(self, replica: Replica, error: UnansweredError) -> None:
        """Count a call without an answer."""
        self._failures.by[replica.variant.id, error.why] += 1

    def shadowed(self, decision: Decision, other: Decision) -> None:
        """Count a decision and the shadow's for the same request."""
        self._shadow.by[decision.variant, other.variant] += 1
        self._shadow_lambda.by["chosen",] += decision.lambda_
        self._shadow_lambda.by["shadow",] += other.lambda_
        if decision.variant in self._expected and other.variant in self._expected:
            self._shadow_tokens.by["chosen",] += self._expected[decision.variant]
            self._shadow_tokens.by["shadow",] += self._expected[other.variant]

    def gone(self) -> None:
        """Count a client that left."""
        self._gone.by[()] += 1

    def broken(self, variant: str) -> None:
        """Count a reply that broke off."""
        self._broken.by[variant,] += 1

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry if self._worker is None else _Labelled(self.registry, self._worker))


class _Labelled(Collector):
    """A registry with one more label on everything: which of several workers has counted it."""

    def __init__(self, registry: CollectorRegistry, worker: int) -> None:
        self._registry, self._label = registry, {"worker": str(worker)}

    def collect(self) -> Iterable[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample._replace(labels={**sample.labels, **self._label}) for sample in metric.samples]
            yield metric


class _Count(Collector):
    """A counter by its labels. Counting is one step of a dictionary; Prometheus' own counters take locks."""

    def __init__(self, name: str, help: str, *labels: str) -> None:
        self._name, self._help, self._labels = name, help, labels
        self.by: defaultdict[tuple[str, ...], float] = defaultdict(float, {} if labels else {(): 0.0})

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for values, count in self.by.items():
            family.add_metric(values, count)
        yield family


class _Times(Collector):
    """The histograms."""

    def __init__(self) -> None:
        self.lambda_ = Histogram([i / 10 for i in range(11)])
        self.route = Histogram(_ROUTE_SECONDS)
        self.upstream: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(_SECONDS))
        self.total = Histogram(_SECONDS)

    def collect(self) -> Iterable[Metric]:
        for name, help, histogram in (
            ("dami_lambda", "λ(q) of requests.", self.lambda_),
            ("dami_route_seconds", "Time to decide.", self.route),
            ("dami_request_seconds", "Time of a whole request.", self.total),
        ):
            family = HistogramMetricFamily(name, help)
            histogram.add_to(family)
            yield family
        upstream = HistogramMetricFamily("dami_upstream_seconds", "Time to a server's first byte.", labels=["variant"])
        for variant, histogram in self.upstream.items():
            histogram.add_to(upstream, [variant])
        yield upstream


class _Now(Collector):
    """The current state: replicas, and requests inside and waiting."""

    def __init__(self, fleet: Fleet, inside: Callable[[], tuple[int, int]]) -> None:
        self._fleet, self._inside = fleet, inside

    def collect(self) -> Iterable[Metric]:
        labels = ["variant", "url"]
        up = GaugeMetricFamily("dami_up", "1 where the last probe found the right model.", labels=labels)
        breaker = GaugeMetricFamily("dami_breaker", "0 closed, 1 half-open, 2 open.", labels=labels)
        busy = GaugeMetricFamily("dami_outstanding", "Calls in progress.", labels=labels)
        for replica in self._fleet.replicas:
            at = [replica.variant.id, replica.spec.url]
            up.add_metric(at, float(replica.health == "alive"))
            breaker.add_metric(at, _BREAKER[replica.breaker.state])
            busy.add_metric(at, replica.outstanding)
        inside, waiting = self._inside()
        yield from (up, breaker, busy)
        yield GaugeMetricFamily("dami_inside", "Requests in progress.", value=inside)
        yield GaugeMetricFamily("dami_waiting", "Requests waiting for a place.", value=waiting)


def _status(status: int) -> str:
    return str(status) if 100 <= status < 600 else "other"
