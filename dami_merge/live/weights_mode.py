"""Which weights a pass should use: an endpoint's own, a merged buffer, or both endpoints with λ a token."""

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
"""What a merge costs, in readings of one model: it reads two and writes one, and has to compute them. Measured on a CPU
it was 8 (docs/benchmarks.md); where memory is all that counts it is 3."""

TOKENS_A_READING = 64
"""A pass of that many tokens takes about as long to compute as the model takes to read; a compromise between CPUs
(about 16) and GPUs (about 200)."""


@dataclass(frozen=True, slots=True)
class WeightsChoice:
    """The weights to use, and whether the buffer must be merged for them first."""

    source: WeightSource
    merge: bool = False


class Policy:
    """Chooses by what the rows of a pass ask for, and by how long they have asked for the same."""

    def __init__(self, mode: Mode, *, patience: int = PATIENCE) -> None:
        self.mode = mode
        self._patience = patience
        self._last: Vector | None = None
        self._spent = 0.0

    def choose(self, vectors: Set[Vector], holds: Vector | None, *, tokens: int, ahead: int) -> WeightsChoice:
        """Choose for a pass of `tokens` over rows with these λ.

        `holds` is what the buffer is merged for; `ahead` the most tokens that a row may still write. A pass with
        both endpoints costs one model more than one with merged weights. `auto` merges when so much has been
        spent on one λ as a merge costs, which is at most twice as dear as knowing the future, and only where as
        much may lie ahead.
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
