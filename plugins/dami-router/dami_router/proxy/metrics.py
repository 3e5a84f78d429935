"""What the proxy counts, for Prometheus. Labels come from the configuration and fixed lists: they are bounded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dami_router.proxy.histogram import Histogram
from dami_router.upstream.fleet import Fleet, Replica
from dami_router.upstream.reply import UnansweredError

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ROUTE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1)
_BREAKER = {"closed": 0.0, "half-open": 1.0, "open": 2.0}


class Metrics:
    """One registry of counters, histograms and gauges for one proxy."""

    def __init__(self, fleet: Fleet, inside: Callable[[], tuple[int, int]]) -> None:
        self.registry = CollectorRegistry()
        to = self.registry
        self._requests = Counter(
            "dami_requests", "Requests by route, variant and status.", ["route", "variant", "status"], registry=to
        )
        self._tokens = Counter(
            "dami_tokens", "Generated tokens, as far as servers report them.", ["variant"], registry=to
        )
        self._times = _Times()
        self._fallbacks = Counter(
            "dami_fallbacks",
            "Requests answered by a variant other than the chosen one.",
            ["chosen", "answered"],
            registry=to,
        )
        self._failures = Counter(
            "dami_upstream_failures", "Calls without an answer.", ["variant", "reason"], registry=to
        )
        self._gone = Counter("dami_clients_gone", "Requests whose client left before the end.", registry=to)
        self._broken = Counter(
            "dami_broken_replies", "Replies that broke off after their first byte.", ["variant"], registry=to
        )
        self.registry.register(_Now(fleet, inside))
        self.registry.register(self._times)
        # `labels` takes locks and builds strings: keep what was looked up once.
        self._spent: dict[str, Counter] = {}
        self._known: dict[tuple[str, str, int], Counter] = {}

    def decided(self, lambda_: float, seconds: float) -> None:
        """Count a decision."""
        self._times.lambda_.observe(lambda_)
        self._times.route.observe(seconds)

    def began(self, chosen: str, answered: str, seconds: float) -> None:
        """Count a reply that began."""
        self._times.upstream[answered].observe(seconds)
        if chosen != answered:
            self._fallbacks.labels(chosen, answered).inc()

    def finished(self, route: str, variant: str, status: int, seconds: float, tokens: int | None) -> None:
        """Count a request that ended."""
        key = (route, variant, status)
        counter = self._known.get(key)
        if counter is None:
            counter = self._known[key] = self._requests.labels(route, variant, _status(status))
        counter.inc()
        self._times.total.observe(seconds)
        if tokens:
            spent = self._spent.get(variant)
            if spent is None:
                spent = self._spent[variant] = self._tokens.labels(variant)
            spent.inc(tokens)

    def failed(self, replica: Replica, error: UnansweredError) -> None:
        """Count a call without an answer."""
        self._failures.labels(replica.variant.id, error.why).inc()

    def gone(self) -> None:
        """Count a client that left."""
        self._gone.inc()

    def broken(self, variant: str) -> None:
        """Count a reply that broke off."""
        self._broken.labels(variant).inc()

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


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
