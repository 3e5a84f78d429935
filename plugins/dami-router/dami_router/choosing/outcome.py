"""The outcome for one request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dami_router.choosing.ordering import Cause
from dami_router.messages.pinning import LIVE, pin

__all__ = ["Decision"]


@dataclass(slots=True)  # not frozen: made for each request
class Decision:
    """Where a query goes and why: λ in [0, 1], and the variants in the order to try."""

    lambda_: float
    variant: str
    estimator: str
    route_ms: float
    order: tuple[str, ...] = ()
    cause: Cause | Literal["pinned", "pass_through"] = "estimator"
    """What decided on the variant: the estimate, or what overruled it."""
    evidence: Mapping[str, float | str] = field(default_factory=dict)

    def name(self, id: str | None = None) -> str:
        """Return the model name of the chosen (or another) variant: its id, or `dami:0.37` on a live server."""
        id = id or self.variant
        return pin(self.lambda_) if id == LIVE else id

    def as_dict(self) -> dict[str, Any]:
        """Return the decision as `/v1/route` and `dami route` give it."""
        return {
            "lambda": round(self.lambda_, 6),
            "variant": self.name(),
            "order": [self.name(id) for id in self.order],
            "estimator": self.estimator,
            "cause": self.cause,
            "evidence": dict(self.evidence),
            "route_ms": round(self.route_ms, 3),
        }
