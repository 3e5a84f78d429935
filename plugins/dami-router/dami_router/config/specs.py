"""What router.yml comes to once the family and the environment are read, as frozen facts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from dami_router.choosing.policy import Figures
from dami_router.choosing.thinking_caps import ThinkingCaps
from dami_router.config.router_schema import AffinitySpec, BreakerSpec, Limits, PolicySpec, ProbeSpec, Retries, Timeouts
from dami_router.estimators.chain import Chain
from dami_router.estimators.effort import Effort
from dami_router.manifest.pair import PairSpec
from dami_router.messages.hints import EFFORT_WORDS, Hints
from dami_router.messages.pinning import LIVE

__all__ = ["EVERY_LAMBDA", "BackendSpec", "Protocol", "RouterConfig", "Shadow", "VariantSpec"]

Protocol = Literal["tgi", "openai", "live"]


@dataclass(frozen=True)
class BackendSpec:
    """One served variant: base URL without `/v1`, protocol, and the server's name for it.

    Protocol `live` has every λ: `variant` is then `live`, and `pair` what the server must hold, if that is known.
    `ca` holds the authorities that its certificate must come from, None for the system's. `shared`: other variants have
    the same URL, as behind a gateway. `balanced`: several servers share the URL.
    """

    variant: str
    url: str
    protocol: Protocol
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    ca: Path | None = None
    identity: bool = True
    shared: bool = False
    balanced: bool = False
    pair: PairSpec | None = None


@dataclass(frozen=True)
class VariantSpec:
    """A variant as the router needs it: λ, the names that a server may give it, its measured figures."""

    id: str
    lambda_: float
    names: frozenset[str]
    revision: str | None = None
    opens_think: bool = False
    figures: Mapping[str, Figures] = field(default_factory=dict)


@dataclass(frozen=True)
class Shadow:
    """Estimators to try out on a `share` in (0, 1] of the requests, without effect."""

    estimator: Chain
    share: float


@dataclass(frozen=True)
class RouterConfig:
    """Everything that the router needs to know."""

    name: str
    variants: tuple[VariantSpec, ...]
    backends: tuple[BackendSpec, ...]
    estimator: Chain
    effort_shift: Mapping[str, float] = field(default_factory=dict)
    shadow: Shadow | None = None
    thinking_caps: ThinkingCaps = field(default_factory=ThinkingCaps)
    policy: PolicySpec = field(default_factory=PolicySpec)
    timeouts: Timeouts = field(default_factory=Timeouts)
    retries: Retries = field(default_factory=Retries)
    affinity: AffinitySpec = field(default_factory=AffinitySpec)
    breaker: BreakerSpec = field(default_factory=BreakerSpec)
    limits: Limits = field(default_factory=Limits)
    probe: ProbeSpec = field(default_factory=ProbeSpec)
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    thinking: Literal["pass", "split"] = "pass"
    hints: Hints = field(default_factory=Hints)
    aliases: Mapping[str, str] = field(default_factory=dict)
    pass_through: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()

    @cached_property
    def expected_tokens(self) -> Mapping[str, float]:
        """The mean tokens of each variant's answers over the manifest's benchmarks, where there are any."""
        means = {v.id: [figures.mean_tokens for figures in v.figures.values()] for v in self.variants}
        return {id: sum(mean) / len(mean) for id, mean in means.items() if mean}

    @cached_property
    def presets(self) -> tuple[str, ...]:
        """The efforts that clients can choose as a model, such as `dami:low`: one for each λ, where effort counts."""
        table = next(
            (link.lambdas for link in self.estimator.estimators if isinstance(link, Effort)), self.effort_shift
        )
        by_lambda = {table[word]: word for word in reversed(EFFORT_WORDS) if word in table}
        return tuple(word for word in EFFORT_WORDS if word in by_lambda.values())

    def preset(self, model: str) -> str | None:
        """Return the effort that a model's name asks for: `low` for `dami:low`; None where it is no preset."""
        name, _, word = model.partition(":")
        return word if name == "dami" and word in EFFORT_WORDS and self.presets else None

    def variant(self, id: str) -> VariantSpec:
        """Return a variant by its id (`live` stands for every λ); StopIteration for an unknown one."""
        return next(v for v in (*self.variants, EVERY_LAMBDA) if v.id == id)


EVERY_LAMBDA = VariantSpec(LIVE, math.nan, frozenset())
"""What a live server has in place of a variant."""
