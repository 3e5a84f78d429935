"""From λ(q) to an existing variant: the rule, the order of fallbacks, and variants to skip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from dami_router.errors import MisuseError

__all__ = ["RULES", "Figures", "Rule", "choose", "dominated", "fallbacks", "nearest"]

Rule = Literal["nearest", "at-least", "at-most", "dithered"]
RULES: tuple[str, ...] = get_args(Rule)


def nearest(lambda_: float, lambdas: Sequence[float]) -> float:
    """Return the variant's λ nearest to λ(q); of two equally near, the smaller."""
    if not lambdas:
        raise MisuseError("no variant to choose from")
    return min(sorted(lambdas), key=lambda variant: abs(variant - lambda_))


def choose(lambda_: float, lambdas: Sequence[float], rule: Rule = "nearest", draw: float = 0.0) -> float:
    """Return the λ of the variant that a rule chooses for λ(q).

    `at-least` and `at-most` take the nearest λ on their side, or the outermost one where there is none.
    `dithered` takes one of the two neighbours, the upper if `draw` in [0, 1) is below λ(q)'s place
    between them: over many evenly spread draws the mean λ is λ(q).
    """
    if rule == "nearest" or not lambdas:
        return nearest(lambda_, lambdas)
    above = min((v for v in lambdas if v >= lambda_), default=max(lambdas))
    below = max((v for v in lambdas if v <= lambda_), default=min(lambdas))
    if rule == "at-least":
        return above
    if rule == "at-most":
        return below
    return above if above > below and draw < (lambda_ - below) / (above - below) else below


def fallbacks(first: float, lambdas: Sequence[float]) -> list[float]:
    """Return all λ in the order to try them: the chosen one, then the nearest to it; lower before higher."""
    return sorted(sorted(lambdas), key=lambda variant: abs(variant - first))


@dataclass(frozen=True, slots=True)
class Figures:
    """A variant on one benchmark: accuracy in [0, 1], mean tokens of an answer, over n queries where that is known."""

    accuracy: float
    mean_tokens: float
    n: int | None = None


def dominated(measured: Mapping[str, Mapping[str, Figures]]) -> set[str]:
    """Return the variants that another one beats: at least as accurate and no more expensive on all their benchmarks.

    `measured` is variant → benchmark → figures. One of the two must be better somewhere. A variant
    without figures is never dominated.
    """
    return {
        variant
        for variant, own in measured.items()
        if own and any(_beats(other, own) for name, other in measured.items() if name != variant)
    }


def _beats(other: Mapping[str, Figures], own: Mapping[str, Figures]) -> bool:
    if not own.keys() <= other.keys():
        return False
    pairs = [(other[name], own[name]) for name in own]
    no_worse = all(a.accuracy >= b.accuracy and a.mean_tokens <= b.mean_tokens for a, b in pairs)
    return no_worse and any(a.accuracy > b.accuracy or a.mean_tokens < b.mean_tokens for a, b in pairs)
