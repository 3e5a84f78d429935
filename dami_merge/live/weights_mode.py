"""Choose the weights for a pass: an endpoint's own, a merged buffer, or both endpoints with a λ per token."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

from dami_merge.live.blend import WeightSource
from dami_merge.live.spread import Vector

__all__ = ["MODES", "Mode", "Policy", "WeightsChoice"]

Mode = Literal["auto", "mixed", "uniform"]
MODES: tuple[Mode, ...] = ("auto", "mixed", "uniform")

PATIENCE = 8
"""The cost of a merge, in readings of one model: it reads two, writes one, and computes. Measured on a CPU: 8
(docs/benchmarks.md); if only memory bandwidth counted it would be 3."""

TOKENS_A_READING = 64
"""Computing a pass of this many tokens takes about as long as reading the model once; a compromise between CPUs
(about 16) and GPUs (about 200)."""


@dataclass(frozen=True, slots=True)
class WeightsChoice:
    """The weights to use, and whether the buffer must be merged for them first."""

    source: WeightSource
    merge: bool = False


class Policy:
    """Chooses by the λ of a pass's rows, and by how long they have stayed the same."""

    def __init__(self, mode: Mode, *, patience: int = PATIENCE) -> None:
        self.mode = mode
        self._patience = patience
        self._last: Vector | None = None
        self._spent = 0.0

    def choose(self, vectors: Set[Vector], holds: Vector | None, *, tokens: int, ahead: int) -> WeightsChoice:
        """Choose for a pass of `tokens` over rows with these λ.

        `holds` is the λ of the merged buffer; `ahead` is the most tokens that a row may still generate. A pass with
        both endpoints reads one model more than a pass with merged weights. `auto` merges once the extra cost at
        one λ has reached the cost of a merge, and only if as much may still lie ahead. So it never costs more than
        twice the best choice in hindsight.
        """
        if self.mode == "mixed" or len(vectors) > 1:
            self._last = None
            return WeightsChoice(WeightSource.MIXED)
        (vector,) = vectors
        ends = set(vector)
        if len(ends) == 1 and ends <= {0.0, 1.0}:
            return WeightsChoice(WeightSource(int(vector[0])))
        if vector == holds:
            return WeightsChoice(WeightSource.MERGED)
        extra = max(1.0, tokens / TOKENS_A_READING)
        self._spent = extra + (self._spent if vector == self._last else 0.0)
        self._last = vector
        if self.mode == "uniform" or (self._spent > self._patience and max(ahead, extra) >= self._patience):
            return WeightsChoice(WeightSource.MERGED, merge=True)
        return WeightsChoice(WeightSource.MIXED)
