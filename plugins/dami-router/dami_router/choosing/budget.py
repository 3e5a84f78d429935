"""An online budget: the mean cost of an answer over the last requests.

Cost is λ, or tokens. For tokens a variant's cost is expected from the manifest's measured mean
and then from the answers themselves (tokens are not monotone in λ, so λ says nothing about them).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Budget", "Entry"]

_WEIGHT = 0.05


@dataclass
class Entry:
    """One request in the window: its variant, and its cost, expected until it is known."""

    variant: str
    cost: float
    inside: bool = True


@dataclass
class Budget:
    """Keep the mean cost over the last `window` requests at `mean` or below, where the cheapest variant allows it.

    `expected` is each variant's cost: λ where `unit` is `lambda`, else mean tokens.
    """

    unit: Literal["lambda", "tokens"]
    mean: float
    window: int
    expected: dict[str, float]
    _entries: deque[Entry] = field(default_factory=deque, init=False)
    _sum: float = field(default=0.0, init=False)

    @classmethod
    def of_lambda(cls, mean: float, window: int, lambdas: Mapping[str, float]) -> Budget:
        """Make a budget of mean λ."""
        return cls("lambda", mean, window, dict(lambdas))

    @property
    def spent(self) -> float:
        """The window's mean cost; 0 before the first request."""
        return self._sum / len(self._entries) if self._entries else 0.0

    def allow(self, order: Sequence[str]) -> list[str]:
        """Reorder variants (best first): the most expensive one within the first one's cost that keeps the mean leads.

        Where none keeps it, the cheapest leads; the others follow in their order.
        """
        cost = self._cost(order[0])
        within = [v for v in order if self._cost(v) <= cost]
        room = self._room()
        fitting = [v for v in within if self._cost(v) <= room]
        first = max(fitting, key=self._cost) if fitting else min(within, key=self._cost)
        return [first, *(v for v in order if v != first)]

    def limited(self, cost: float) -> float:
        """Return the largest cost not above `cost` that keeps the mean; 0 where none does."""
        return max(0.0, min(cost, self._room()))

    def spend(self, variant: str, cost: float | None = None) -> Entry:
        """Enter a request into the window at its cost, by default its variant's expected cost."""
        entry = Entry(variant, self._cost(variant) if cost is None else cost)
        self._entries.append(entry)
        self._sum += entry.cost
        if len(self._entries) > self.window:
            gone = self._entries.popleft()
            gone.inside = False
            self._sum -= gone.cost
        return entry

    def settle(self, entry: Entry, variant: str, tokens: int | None, cost: float | None = None) -> None:
        """Correct an entry once its answer is known: the variant that gave it, its tokens, its cost if known."""
        if self.unit == "tokens" and tokens is not None:
            before = self.expected.get(variant, float(tokens))
            self.expected[variant] = before + _WEIGHT * (tokens - before)
            actual = float(tokens)
        else:
            actual = self._cost(variant) if cost is None else cost
        if entry.inside:
            self._sum += actual - entry.cost
        entry.variant, entry.cost = variant, actual

    def _cost(self, variant: str) -> float:
        # A variant of unknown cost is assumed to cost the allowed mean: neither penalised nor favoured.
        return self.expected.get(variant, self.mean)

    def _room(self) -> float:
        leaving = self._entries[0].cost if len(self._entries) == self.window else 0.0
        count = min(len(self._entries) + 1, self.window)
        # A small tolerance for the rounding of a running sum.
        return self.mean * count - (self._sum - leaving) + 1e-9
