"""Shared by `dami serve --check` and `dami check --probe`: query every server for its identity and capabilities."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from dami_router.config.specs import RouterConfig
from dami_router.output import table
from dami_router.router import Router
from dami_router.upstream.fleet import Replica

__all__ = ["ServerTable", "probe"]

_HEADER = ("variant", "λ", "protocol", "url", "health", "capabilities, or the problem")


@dataclass(frozen=True)
class ServerTable:
    """The results: a mapping for each server."""

    found: tuple[dict[str, Any], ...]

    @property
    def ok(self) -> bool:
        """Whether every server responds and serves the model in router.yml."""
        return all(facts["health"] == "alive" for facts in self.found)

    def text(self) -> str:
        """Return the results as a text table."""
        return table(_HEADER, [_row(facts) for facts in self.found])


def probe(config: RouterConfig) -> ServerTable:
    """Query every server of a configuration; generates one token on each server that is up."""

    async def look() -> Router:
        router = Router(config)
        async with router:
            await asyncio.gather(*(router.prober.explore(replica) for replica in router.fleet.replicas))
        return router

    return ServerTable(tuple(_facts(replica) for replica in asyncio.run(look()).fleet.replicas))


def _facts(replica: Replica) -> dict[str, Any]:
    return {
        "variant": replica.variant.id,
        "lambda": None if replica.live else replica.variant.lambda_,
        "protocol": replica.spec.protocol,
        "engine": replica.engine,
        "url": replica.spec.url,
        "health": replica.health,
        "trouble": replica.trouble,
        "capabilities": dict(replica.identity.capabilities) if replica.identity else {},
    }


def _row(facts: dict[str, Any]) -> list[str]:
    can = ", ".join(name.replace("_", " ") for name, able in facts["capabilities"].items() if able)
    lambda_ = "any" if facts["lambda"] is None else f"{facts['lambda']:g}"
    protocol = "live (vLLM)" if facts["engine"] == "vllm" else facts["protocol"]
    first = [facts["variant"], lambda_, protocol, facts["url"], facts["health"]]
    return [*first, facts["trouble"] or can]
