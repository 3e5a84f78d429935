"""All replicas of all variants: which are healthy, how busy they are, and which comes next."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from dami_router.backends.backend import Identity
from dami_router.backends.live_protocol import described
from dami_router.choosing.affinity import pick, tag
from dami_router.config.specs import BackendSpec, RouterConfig, VariantSpec
from dami_router.messages.pinning import LIVE, pin
from dami_router.upstream.breaker import Breaker

__all__ = ["Fleet", "Replica", "Waiting"]

Protocols = frozenset[str] | None
"""The protocols that have a route; None: all of them."""

_ENGINES: Mapping[str | None, frozenset[str]] = {
    "embedded": frozenset({"live"}), "vllm": frozenset({"vllm"}), None: frozenset({"live", "vllm"}),
}  # fmt: skip

Health = Literal["unknown", "alive", "dead", "wrong"]


@dataclass(eq=False, slots=True)
class Waiting:
    """A call before its first byte: its task, since when (by `monotonic`), for a whole reply or a stream."""

    task: asyncio.Task[Any]
    since: float
    whole: bool
    elsewhere: Callable[[], bool]
    """Whether another replica could take it now."""
    given_up: bool = False

    def give_up(self) -> None:
        """Cancel the call, once, for another replica to take."""
        if not self.given_up:
            self.given_up = True
            self.task.cancel()

    def ended_by(self, error: BaseException) -> bool:
        """Return whether the call ended because it was given up; False where its client left, too."""
        return self.given_up and isinstance(error, asyncio.CancelledError) and self.task.uncancel() == 0


@dataclass(eq=False)
class Replica:
    """One URL of a variant or of a live server, with what is known of it now."""

    spec: BackendSpec
    variant: VariantSpec
    breaker: Breaker
    health: Health = "unknown"
    trouble: str = ""
    identity: Identity | None = None
    outstanding: int = 0
    hung: bool = False
    missed: int = 2
    """Health checks without a good answer, in a row; nothing is known at first, and nothing waits."""
    heard: float = 0.0
    """When it last gave an answer to a request, by `monotonic`."""
    waiting: set[Waiting] = field(default_factory=set)
    """Calls before their first byte."""

    @cached_property
    def tag(self) -> int:
        """Its part of the hash that keeps conversations on one replica; the same in every router."""
        return tag(self.spec.url)

    @property
    def usable(self) -> bool:
        """Whether requests may be sent: never to a server of the wrong model, nor past an open breaker."""
        return self.health != "wrong" and self.breaker.ready

    @property
    def live(self) -> bool:
        """Whether it answers at any λ."""
        return self.spec.protocol == "live"

    @property
    def engine(self) -> Literal["embedded", "vllm"] | None:
        """The engine of a live server: `dami live`'s own, or vLLM; None for a variant, and until the server says it."""
        if not self.live or self.identity is None:
            return None
        return "vllm" if self.identity.info.get("engine") == "vllm" else "embedded"

    @property
    def dialects(self) -> frozenset[str]:
        """The protocols of `messages.routes` that it speaks; both engines' until a live server says which it is."""
        if self.live:
            return _ENGINES[self.engine]
        return frozenset({self.spec.protocol})

    def overdue(self, now: float, after: float) -> bool:
        """Return whether a whole reply has been awaited for more than `after` seconds."""
        return any(call.whole and now - call.since > after for call in self.waiting)

    def give_up(self, *, movable: bool = False) -> None:
        """End the calls before their first byte, for another replica to take; or only those that another can take."""
        for call in self.waiting:
            if not movable or call.elsewhere():
                call.give_up()

    def hang(self, trouble: str) -> None:
        """Note that it answers no completions: it comes last, and what waits for it goes elsewhere."""
        self.hung = True
        if self.health != "wrong":
            self.health, self.trouble = "dead", trouble
        self.breaker.trip()
        self.give_up()

    def recover(self) -> None:
        """Note that it answers completions again; the next health check says more."""
        if self.hung:
            self.hung = False
            if self.health != "wrong":
                self.health, self.trouble = "alive", ""
            self.breaker.succeeded()

    def opens_think(self, lambda_: float) -> bool:
        """Say whether the chat template that it uses at λ ends inside a `<think>` block."""
        least = described(self.identity.info).get("opens_think_from") if self.live and self.identity else None
        return lambda_ >= least if isinstance(least, int | float) else self.variant.opens_think

    def can(self, ability: str) -> bool | None:
        """Return whether the server has an ability; None where it is unknown."""
        return self.identity.capabilities.get(ability) if self.identity else None

    def at(self, lambda_: float) -> float:
        """Return the λ of its answer to a query that wants `lambda_`."""
        return lambda_ if self.live else self.variant.lambda_

    def name(self, lambda_: float) -> str:
        """Return the model name that gets the same weights again: a variant's id, or `dami:0.37`."""
        return pin(lambda_) if self.live else self.variant.id

    def served_as(self, lambda_: float) -> str | None:
        """Return the server's own name for the model at λ; None for TGI, which accepts any name."""
        if self.live and self.engine != "vllm":
            return pin(lambda_)
        if self.spec.protocol == "tgi":
            return None
        return self.spec.model or (self.identity.model if self.identity else self.variant.id)


class Fleet:
    """The replicas of a configuration."""

    def __init__(self, config: RouterConfig) -> None:
        self._variants = {variant.id for variant in config.variants}
        self._load = config.affinity.load
        self.served = len({spec.variant for spec in config.backends})
        """The number of variants with a replica; live servers count as one."""
        self.replicas = [
            Replica(spec, config.variant(spec.variant), Breaker(config.breaker.failures, config.breaker.open_s))
            for spec in config.backends
        ]
        self._of: dict[str, list[Replica]] = {}
        for replica in self.replicas:
            self._of.setdefault(replica.variant.id, []).append(replica)

    def of(self, variant: str, protocols: Protocols = None) -> list[Replica]:
        """Return a variant's replicas; only of some protocols where the route needs that."""
        return [r for r in self._of.get(variant, ()) if _speaks(r, protocols)]

    def standing_for(self, variant: str) -> str | None:
        """Return the id that serves this variant: itself, else a live server's; None where there is neither.

        Without any replica, another program does the sending. For a live server, a variant is one value of λ.
        """
        if not self.replicas or self.of(variant):
            return variant
        return LIVE if self.of(LIVE) else None

    def offered(self, protocols: Protocols = None) -> set[str]:
        """Return the variants with a healthy, usable replica; where none is healthy, those with a usable one.

        Without any replica, another program does the sending, and every variant is on offer.
        """
        if not self.replicas:
            return set(self._variants)
        healthy: set[str] = set()
        dead: set[str] = set()
        for replica in self.replicas:
            if replica.usable and _speaks(replica, protocols):
                (dead if replica.health == "dead" else healthy).add(replica.variant.id)
        return healthy or dead

    def known(self, protocols: Protocols = None) -> set[str]:
        """Return the variants with a replica, in whatever state; without any replica, every variant."""
        return {r.variant.id for r in self.replicas if _speaks(r, protocols)} if self.replicas else set(self._variants)

    def next(
        self, variants: Iterable[str], tried: set[Replica], protocols: Protocols = None,
        key: Callable[[], bytes | None] | None = None,
    ) -> Replica | None:  # fmt: skip
        """Return the next replica to try: variants in order, dead replicas last.

        Of a variant's replicas, it is the one that `key` prefers, the conversation's, and without a key the least busy.
        """
        last_resort: Replica | None = None
        for variant in variants:
            alive: list[Replica] = []
            dead: list[Replica] = []
            for replica in self.of(variant, protocols):
                if replica not in tried and replica.usable:
                    (dead if replica.health == "dead" else alive).append(replica)
            if len(alive) > 1 and key is not None and (found := key()) is not None:
                return alive[pick(found, [r.tag for r in alive], [r.outstanding for r in alive], self._load)]
            if alive:
                return _least_busy(alive)
            if dead and last_resort is None:
                last_resort = _least_busy(dead)
        return last_resort


def _speaks(replica: Replica, protocols: Protocols) -> bool:
    return protocols is None or bool(protocols & replica.dialects)


def _least_busy(replicas: list[Replica]) -> Replica:
    if len(replicas) == 1:
        return replicas[0]
    least = min(replica.outstanding for replica in replicas)
    return random.choice([replica for replica in replicas if replica.outstanding == least])  # noqa: S311
