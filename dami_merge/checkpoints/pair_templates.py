"""Which chat template a pair has at which λ."""

from __future__ import annotations

from typing import Any

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.templates import opens_think, template_of

__all__ = ["PairTemplates"]

_STEPS = 20


class PairTemplates:
    """Both endpoints' chat templates. `thinking_from`: from this λ on, Thinking's.

    A side that lacks a template falls back to the other's.
    """

    def __init__(self, instruct: Checkpoint, thinking: Checkpoint, thinking_from: float) -> None:
        self.thinking_from = thinking_from
        self._templates = [_text(template_of(side)) for side in (instruct, thinking)]

    def template(self, lambda_: float) -> str | None:
        """Return the template at λ, or None if neither endpoint has one."""
        first, second = reversed(self._templates) if lambda_ >= self.thinking_from else self._templates
        return first if first is not None else second

    def opens_think(self, lambda_: float) -> bool:
        """Tell whether the template at λ opens a `<think>` block in the prompt."""
        return opens_think(self.template(lambda_))

    def opens_think_from(self) -> float | None:
        """Return the smallest λ whose template opens a `<think>` block in the prompt; None if none does."""
        if not self.opens_think(1.0):
            return None
        low, high = 0.0, 1.0
        if self.opens_think(low):
            return low
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.opens_think(middle) else (middle, high)
        return round(high, 6)


def _text(template: Any) -> str | None:
    if isinstance(template, list):
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    return template if isinstance(template, str) else None
