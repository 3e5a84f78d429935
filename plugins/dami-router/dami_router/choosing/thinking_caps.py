"""How many tokens an answer may think, from λ or from the effort that the request names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dami_router.choosing.ordering import SAME_LAMBDA

__all__ = ["ThinkingCaps"]


@dataclass(frozen=True)
class ThinkingCaps:
    """`by_lambda`: an answer at a λ up to a key may think so many tokens, and above the largest key without limit.

    `by_effort` comes first where the request names an effort of it.
    """

    by_lambda: Mapping[float, int] = field(default_factory=dict)
    by_effort: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether any request is capped."""
        return bool(self.by_lambda or self.by_effort)

    def of(self, lambda_: float, effort: str | None) -> int | None:
        """Return the cap of an answer at λ in [0, 1]; None for none."""
        if effort is not None and effort in self.by_effort:
            return self.by_effort[effort]
        reached = min((key for key in self.by_lambda if lambda_ <= key + SAME_LAMBDA), default=None)
        return None if reached is None else self.by_lambda[reached]
