"""The engine behind the proxy: one backend, in this process, that answers at any λ."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dami_merge.live import Engine
from dami_merge.live_server.describing import Description, name_of
from dami_merge.live_server.engine_calls import EngineCalls
from dami_router.config.router_schema import Timeouts
from dami_router.config.specs import RouterConfig, VariantSpec
from dami_router.messages.pinning import LIVE
from dami_router.proxy.app import Proxy
from dami_router.proxy.page_data import PageData
from dami_router.proxy.server import serve

__all__ = ["configure", "make_proxy", "run"]

_TIMEOUTS = Timeouts(first_byte=600.0, total=3600.0)
"""Long enough for a model of four billion parameters on a CPU; `timeouts` in the router's section overrides them."""


def configure(engine: Engine, section: RouterConfig, keys: tuple[str, ...] = ()) -> RouterConfig:
    """Return the proxy's configuration: the endpoints by name, and the settings that `load_section` has read."""
    timeouts = _TIMEOUTS if section.timeouts == Timeouts() else section.timeouts
    return replace(
        section, name=engine.name, variants=_variants(engine), timeouts=timeouts, api_keys=(*section.api_keys, *keys)
    )


def make_proxy(engine: Engine, config: RouterConfig, path: object = "uniform", page: PageData | None = None) -> Proxy:
    """Return the application: the proxy over the engine. Its lifespan starts and stops the engine's thread."""
    description = Description(engine, path)
    description.start()
    calls = EngineCalls(engine, config.timeouts, description.info)
    proxy = Proxy(config, calls, {"/tokenize": calls.tokenize, "/v1/embeddings": calls.embeddings}, page)
    proxy.metrics.registry.register(_Rows(engine))
    return proxy


def run(
    engine: Engine, config: RouterConfig, path: object, host: str, port: int, ready: Callable[[str], None],
    page: PageData | None = None,
) -> None:  # fmt: skip
    """Serve until SIGTERM or SIGINT; see `dami_router.proxy.server`."""
    serve(config, host, port, ready, make_proxy(engine, config, path, page))


def _variants(engine: Engine) -> tuple[VariantSpec, ...]:
    """Return the endpoints under their own names, or `instruct` and `thinking` if these are the same."""
    pair = engine.endpoints
    names = [name_of(side).rsplit("/", 1)[-1] for side in (pair.instruct, pair.thinking)] if pair else []
    if len(set(names)) < len(("instruct", "thinking")) or set(names) & {LIVE, "dami"}:
        names = ["instruct", "thinking"]
    return tuple(VariantSpec(name, lambda_, frozenset({name})) for name, lambda_ in zip(names, (0.0, 1.0), strict=True))


class _Rows(Collector):
    """The engine's current state."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        engine = self._engine
        yield GaugeMetricFamily("dami_live_rows", "Live sequences.", value=engine.rows)
        yield GaugeMetricFamily("dami_live_waiting", "Sequences that wait to be admitted.", value=engine.waiting)
        yield GaugeMetricFamily("dami_live_cache_bytes", "Bytes of keys and values.", value=engine.cache_bytes)
