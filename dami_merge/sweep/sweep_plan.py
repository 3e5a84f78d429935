"""Which λ to ask next, which are not worth more questions, and when the intervals are narrow enough.

A first grid of λ is asked a part of the questions. Where the curve of accuracy and tokens bends, the grid is made
finer. λ that are clearly dominated get no further questions; the others get twice as many, again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dami_router.errors import MisuseError
from dami_router.rollouts.grid import Grid, figure

__all__ = [
    "SweepPlan",
    "cap_ladder",
    "clear_steps",
    "clearly_dominated",
    "default_lambda",
    "finer",
    "frontier_lambdas",
    "half_width",
    "rounds_of",
]

_AT_ONCE = 2
_DIGITS = 4
_LEAST_BEND = 0.01
"""Of the whole range of tokens and accuracy; smaller bends are straight lines."""
_PILOT = 50


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep may do.

    `lambdas`: the first grid; `most`: λ in all; `step`: the least distance of two λ; `precision`: stop when every 95 %
    interval of accuracy is at most this far from its mean, in [0, 1]; `max_tokens`: stop before more tokens than this
    are generated in all; `caps`: limits of thinking tokens at the largest λ, None to derive them from its answers.
    Raises MisuseError for values that contradict each other.
    """

    lambdas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    most: int = 9
    step: float = 0.05
    precision: float = 0.0
    max_tokens: int | None = None
    caps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if len(set(self.lambdas)) < 2 or not all(0.0 <= x <= 1.0 for x in self.lambdas):
            raise MisuseError("--lambdas expects at least two different values from 0 to 1")
        if self.most < len(set(self.lambdas)):
            raise MisuseError(f"--most {self.most} is less than the {len(set(self.lambdas))} values of --lambdas")


def rounds_of(questions: int) -> list[int]:
    """Return the number of questions after each round: a quarter (at least 50), then twice as many each time."""
    found = [min(questions, max(_PILOT, -(-questions // 4)))]
    while found[-1] < questions:
        found.append(min(2 * found[-1], questions))
    return found


def finer(grid: Grid, plan: SweepPlan) -> list[float]:
    """Return at most two new λ, in the middle of neighbours where the curve bends most; empty if it need not be finer.

    At least one of the neighbours is on the frontier: between two dominated λ there is nothing to look for.
    """
    room = min(plan.most - len(grid.lambdas), _AT_ONCE)
    bends, front = _bends(grid), set(frontier_lambdas(grid))
    found = []
    for i, (a, b) in enumerate(zip(grid.lambdas, grid.lambdas[1:], strict=False)):
        bend = max(bends[i], bends[i + 1])
        if (b - a) / 2 >= plan.step - 1e-9 and {a, b} & front and bend >= _LEAST_BEND:
            found.append((-bend, round((a + b) / 2, _DIGITS)))
    return sorted(x for _, x in sorted(found)[: max(room, 0)])


def frontier_lambdas(grid: Grid) -> list[float]:
    """Return the λ that no other one dominates, by their means."""
    accuracy, tokens = grid.correct.mean(axis=0), grid.tokens.mean(axis=0)
    return [
        x
        for i, x in enumerate(grid.lambdas)
        if not any(
            accuracy[j] >= accuracy[i]
            and tokens[j] <= tokens[i]
            and (accuracy[j] > accuracy[i] or tokens[j] < tokens[i])
            for j in range(len(grid.lambdas))
        )
    ]


def clearly_dominated(grid: Grid) -> list[float]:
    """Return the λ, other than the ends, that another one dominates beyond chance.

    The other one is as accurate and as cheap by the means, and better in one of the two by a 95 % interval, paired by
    query.
    """
    inner = grid.lambdas[1:-1]
    return [x for i, x in enumerate(inner, 1) if any(_beats(grid, j, i) for j in range(len(grid.lambdas)) if j != i)]


def clear_steps(grid: Grid) -> list[float]:
    """Return λ of the frontier by rising cost, each clearly more accurate than the one before; the cheapest is first.

    Clearly: the 95 % interval of the difference, paired by query, is above zero.
    """
    first, *rest = _by_cost(grid)
    found = [first]
    for i in rest:
        if figure(grid.correct[:, i] - grid.correct[:, found[-1]]).low > 0:
            found.append(i)
    return [grid.lambdas[i] for i in found]


def default_lambda(grid: Grid) -> float:
    """Return the cheapest λ whose accuracy is within one standard error of the most accurate λ's, paired by query."""
    columns = _by_cost(grid)
    best = columns[-1]
    for i in columns:
        lost = grid.correct[:, best] - grid.correct[:, i]
        if lost.mean() <= lost.std() / np.sqrt(len(lost)):
            return grid.lambdas[i]
    return grid.lambdas[best]


def half_width(grid: Grid, lambdas: Sequence[float]) -> float:
    """Return the widest half of a 95 % interval of accuracy among these λ."""
    found = [figure(grid.correct[:, grid.lambdas.index(x)].copy()) for x in lambdas]
    return max((f.high - f.low) / 2 for f in found)


def cap_ladder(tokens: float) -> tuple[int, ...]:
    """Return caps at an eighth, a quarter and half of a mean number of tokens, rounded to two digits; none below 1."""
    caps = []
    for share in (0.125, 0.25, 0.5):
        exact = tokens * share
        digits = 10 ** max(len(str(int(exact))) - 2, 0)
        caps.append(int(round(exact / digits) * digits))
    return tuple(sorted({cap for cap in caps if cap >= 1}))


def _by_cost(grid: Grid) -> list[int]:
    """Return the columns of the frontier by rising tokens, and so by rising accuracy."""
    columns = [grid.lambdas.index(x) for x in frontier_lambdas(grid)]
    return sorted(columns, key=lambda i: float(grid.tokens[:, i].mean()))


def _bends(grid: Grid) -> list[float]:
    """Return each λ's distance from the line between its neighbours, in the plane of tokens and accuracy.

    Both are fractions of their range; the ends bend with their neighbour.
    """
    points = np.stack([_scaled(grid.tokens.mean(axis=0)), _scaled(grid.correct.mean(axis=0))], axis=1)
    if len(points) < 3:
        return [1.0] * len(points)
    inner = []
    for before, point, after in zip(points, points[1:], points[2:], strict=False):
        along = after - before
        length = float(np.hypot(*along))
        off = point - before
        inner.append(abs(float(along[0] * off[1] - along[1] * off[0])) / length if length else float(np.hypot(*off)))
    return [inner[0], *inner, inner[-1]]


def _scaled(values: np.ndarray) -> np.ndarray:
    span = float(values.max() - values.min())
    return (values - values.min()) / span if span else np.zeros_like(values)


def _beats(grid: Grid, other: int, this: int) -> bool:
    gain, saved = grid.correct[:, other] - grid.correct[:, this], grid.tokens[:, this] - grid.tokens[:, other]
    if gain.mean() < 0 or saved.mean() < 0:
        return False
    return figure(gain).low > 0 or figure(saved).low > 0
