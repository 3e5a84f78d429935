"""What router.yml says, as frozen facts. The readers in this folder make them; everything else uses them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dami_router.choosing.policy import Figures, Rule
from dami_router.estimators.chain import Chain
from dami_router.manifest.pair import PairSpec
from dami_router.messages.pinning import LIVE

__all__ = [
    "EVERY_LAMBDA", "BackendSpec", "BreakerSpec", "BudgetSpec", "Limits", "PolicySpec", "ProbeSpec", "Protocol",
    "Retries", "RouterConfig", "Timeouts", "VariantSpec",
]  # fmt: skip

Protocol = Literal["tgi", "openai", "live"]


@dataclass(frozen=True)
class BackendSpec:
    """One served variant: base URL without `/v1`, protocol, and the name under which the server has it.

    Protocol `live` has every λ: `variant` is then `live`, and `pair` what must be behind it, if that was said.
    """

    variant: str
    url: str
    protocol: Protocol
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    identity: bool = True
    pair: PairSpec | None = None


@dataclass(frozen=True)
class VariantSpec:
    """A variant as the router needs it: λ, the names that a server may give it, what it was measured at."""

    id: str
    lambda_: float
    names: frozenset[str]
    revision: str | None = None
    opens_think: bool = False
    figures: Mapping[str, Figures] = field(default_factory=dict)


@dataclass(frozen=True)
class PolicySpec:
    """How λ(q) becomes a variant; λ limits in [0, 1]."""

    rule: Rule = "nearest"
    lambda_min: float = 0.0
    lambda_max: float = 1.0
    sticky: bool = False
    drop_dominated: bool = True
    budget: BudgetSpec | None = None


@dataclass(frozen=True)
class BudgetSpec:
    """The wanted mean λ or mean tokens over the last `window` requests."""

    unit: Literal["lambda", "tokens"]
    mean: float
    window: int = 200


@dataclass(frozen=True)
class Timeouts:
    """Seconds: to connect, to a stream's first byte, between two reads, and for a whole request."""

    connect: float = 2.0
    first_byte: float = 60.0
    idle: float = 60.0
    total: float = 600.0
    keepalive: float = 4.0


@dataclass(frozen=True)
class Retries:
    """At most `attempts` calls for one request; before the nth, a random pause of up to backoff·2ⁿ⁻² seconds."""

    attempts: int = 6
    backoff: float = 0.05


@dataclass(frozen=True)
class BreakerSpec:
    """Failures in a row that open a replica's breaker, and for how many seconds."""

    failures: int = 5
    open_s: float = 5.0


@dataclass(frozen=True)
class Limits:
    """Requests at once, waiting, and how long (s); the largest body (bytes); seconds to drain on SIGTERM."""

    concurrency: int = 256
    queue: int = 256
    queue_wait: float = 10.0
    body_bytes: int = 16 << 20
    drain: float = 30.0


@dataclass(frozen=True)
class ProbeSpec:
    """Seconds between two probes of a backend, and for one probe."""

    interval: float = 10.0
    timeout: float = 5.0


@dataclass(frozen=True)
class RouterConfig:
    """Everything that `router.yml` says."""

    name: str
    variants: tuple[VariantSpec, ...]
    backends: tuple[BackendSpec, ...]
    estimator: Chain
    effort_shift: Mapping[str, float] = field(default_factory=dict)
    policy: PolicySpec = PolicySpec()
    timeouts: Timeouts = Timeouts()
    retries: Retries = Retries()
    breaker: BreakerSpec = BreakerSpec()
    limits: Limits = Limits()
    probe: ProbeSpec = ProbeSpec()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    thinking: Literal["pass", "split"] = "pass"

    def variant(self, id: str) -> VariantSpec:
        """Return a variant by its id (`live` stands for every λ); StopIteration where there is none."""
        return next(v for v in (*self.variants, EVERY_LAMBDA) if v.id == id)


EVERY_LAMBDA = VariantSpec(LIVE, math.nan, frozenset())
"""What a live server is in place of a variant."""
