"""The cost of an answer at a λ: λ itself, or measured tokens."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from dami_router.config.specs import VariantSpec
from dami_router.errors import MisuseError
from dami_router.rollouts.records import Rollout

__all__ = ["Cost", "LambdaCost", "TokenCosts", "Unit", "tokens_of_rollouts", "tokens_of_variants"]

Unit = Literal["lambda", "tokens"]
_SAME = 1e-6


class Cost(Protocol):
    """The cost of an answer."""

    def __call__(self, query: str, lambda_: float) -> float:
        """Return the expected cost of one query's answer at λ."""
        ...


class LambdaCost:
    """λ is its own cost."""

    def __call__(self, query: str, lambda_: float) -> float:  # noqa: ARG002
        """Return λ."""
        return lambda_


@dataclass(frozen=True)
class TokenCosts:
    """Mean tokens by λ, and per query where known; with `between`, interpolated linearly between known λ."""

    means: Mapping[float, float]
    own: Mapping[str, Mapping[float, float]] = field(default_factory=dict)
    between: bool = False

    def __call__(self, query: str, lambda_: float) -> float:
        """Return the tokens of this query's answer at λ; raises MisuseError for a λ that was not measured."""
        found = _at(self.own.get(query, {}), lambda_, self.between)
        found = _at(self.means, lambda_, self.between) if found is None else found
        if found is None:
            wanted = "rollouts on both sides of it" if self.between else "rollouts of every variant"
            raise MisuseError(
                f"no measured tokens at λ={lambda_:g}, only at {_list(self.means)}",
                hint=f"give {wanted} with --rollouts, or use --mean-lambda",
            )
        return found


def tokens_of_variants(variants: Iterable[VariantSpec], *, between: bool = False) -> TokenCosts:
    """Return the manifest's measurements: each variant's mean over its benchmarks."""
    means = {
        v.lambda_: math.fsum(f.mean_tokens for f in v.figures.values()) / len(v.figures) for v in variants if v.figures
    }
    if not means:
        raise MisuseError(
            "no variant has measured tokens, so --mean-tokens cannot be computed",
            hint="give --rollouts r.jsonl, or add them to the manifest: dami eval r.jsonl --write-manifest",
        )
    return TokenCosts(means, between=between)


def tokens_of_rollouts(rollouts: Iterable[Rollout], *, between: bool = False) -> TokenCosts:
    """Return the costs in rollouts: each query's tokens, and each λ's mean; answers with a cap are left out."""
    found: dict[str, dict[float, list[float]]] = {}
    for rollout in rollouts:
        if rollout.cap is None:
            found.setdefault(rollout.query, {}).setdefault(rollout.lambda_, []).append(rollout.tokens)
    own = {query: {x: math.fsum(cell) / len(cell) for x, cell in cells.items()} for query, cells in found.items()}
    columns: dict[float, list[float]] = {}
    for cells in own.values():
        for x, tokens in cells.items():
            columns.setdefault(x, []).append(tokens)
    if not columns:
        raise MisuseError("no rollouts")
    return TokenCosts({x: math.fsum(c) / len(c) for x, c in columns.items()}, own, between)


def _at(known: Mapping[float, float], lambda_: float, between: bool) -> float | None:
    if lambda_ in known:
        return known[lambda_]
    grid = sorted(known)
    for x in grid:
        if abs(x - lambda_) < _SAME:
            return known[x]
    if not between or not grid or not grid[0] <= lambda_ <= grid[-1]:
        return None
    i = bisect_left(grid, lambda_)
    low, high = grid[i - 1], grid[i]
    share = (lambda_ - low) / (high - low)
    return (1 - share) * known[low] + share * known[high]


def _list(means: Mapping[float, float]) -> str:
    return ", ".join(f"{x:g}" for x in sorted(means))
