"""Which weights a pass should use: an endpoint's own, a merged buffer, or both endpoints with λ a token."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

from dami_merge.live.blend import Source
from dami_merge.live.spread import Vector

__all__ = ["MODES", "Decision", "Mode", "Policy"]

Mode = Literal["auto", "mixed", "uniform"]
MODES: tuple[Mode, ...] = ("auto", "mixed", "uniform")

PATIENCE = 8
"""Passes at one λ after which `auto` merges. A merge reads two models and writes one, and then each pass reads one
model less: it has paid for itself after three passes where memory is all that counts, and later on a CPU that has to
compute it (docs/live.md). Waiting as long as a merge costs is at most twice as dear as knowing the future."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The weights to use, and whether the buffer must be merged for them first."""

    source: Source
    merge: bool = False


class Policy:
    """Chooses by what the rows of a pass ask for, and by how long they have asked for the same."""

    def __init__(self, mode: Mode, *, patience: int = PATIENCE) -> None:
        self.mode = mode
        self._patience = patience
        self._last: Vector | None = None
        self._passes = 0

    def choose(self, vectors: Set[Vector], holds: Vector | None, ahead: int) -> Decision:
        """Choose for a pass over rows with these λ.

        `holds` is what the buffer is merged for; `ahead` the most tokens that a row may still write.
        """
        if self.mode == "mixed" or len(vectors) > 1:
            self._last = None
            return Decision(Source.MIXED)
        (vector,) = vectors
        ends = set(vector)
        if len(ends) == 1 and ends <= {0.0, 1.0}:
            return Decision(Source(int(vector[0])))
        if vector == holds:
            return Decision(Source.MERGED)
        self._passes = self._passes + 1 if vector == self._last else 1
        self._last = vector
        if self.mode == "uniform" or (self._passes > self._patience and ahead >= self._patience):
            return Decision(Source.MERGED, merge=True)
        return Decision(Source.MIXED)
