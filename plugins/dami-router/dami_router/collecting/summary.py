"""Summary of rollouts by λ: accuracy, tokens, thoughts, and how many answers were cut off."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dami_router.rollouts.records import Rollout

__all__ = ["HEADER", "Tally", "summed_up"]

HEADER = ("λ", "model", "answers", "accuracy", "mean tokens", "thinking", "cut off")


@dataclass
class Tally:
    """Sums over the rollouts at one λ, with one cap or without. `graded`: whether `correct` is valid."""

    lambda_: float
    cap: int | None
    model: str
    graded: bool
    n: int = 0
    correct: float = 0.0
    tokens: float = 0.0
    think: int = 0
    cut: int = 0

    def add(self, row: Rollout) -> None:
        """Count one rollout."""
        self.n += 1
        self.correct += row.correct
        self.tokens += row.tokens
        self.think += bool(row.think)
        self.cut += row.finish_reason == "length"

    def as_dict(self) -> dict[str, Any]:
        """Return the means for JSON; accuracy is null for ungraded rollouts."""
        return {
            "lambda": self.lambda_,
            **({} if self.cap is None else {"cap": self.cap}),
            "model": self.model,
            "n": self.n,
            "accuracy": self.correct / self.n if self.graded else None,
            "mean_tokens": self.tokens / self.n,
            "think_share": self.think / self.n,
            "cut_off_share": self.cut / self.n,
        }

    def row(self) -> list[str]:
        """Return the means as cells of a table."""
        accuracy = f"{self.correct / self.n:.1%}" if self.graded else "-"
        shares = [f"{count / self.n:.0%}" for count in (self.think, self.cut)]
        name = f"{self.lambda_:g}" if self.cap is None else f"{self.lambda_:g}, cap {self.cap}"
        return [name, self.model, str(self.n), accuracy, f"{self.tokens / self.n:,.1f}", *shares]


def summed_up(rows: Iterable[Rollout], *, graded: bool) -> list[Tally]:
    """Return the tallies by λ, ascending, then those with a cap."""
    found: dict[tuple[int, float], Tally] = {}
    for row in rows:
        key = -1 if row.cap is None else row.cap, row.lambda_
        found.setdefault(key, Tally(row.lambda_, row.cap, row.model or "-", graded)).add(row)
    return [found[key] for key in sorted(found, key=lambda key: (key[0] >= 0, key[1], key[0]))]
