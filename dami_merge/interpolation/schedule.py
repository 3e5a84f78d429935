"""λ as a function of depth: what `lambda:` may say beside a number.

    ramp(a, b)                            from a at x=0 in a straight line to b at x=1
    cosine(a, b)                          the same ends, level at both
    sigmoid(a, b, center=0.5, width=0.1)  a + (b−a)·σ((x−center)/width)
    step(a, b, at)                        a before layer `at`, b from it on
    window(first, last, inside, outside)  `inside` on layers first…last, both included

`step` and `window` count layers; embeddings go with the first layer, the final norm and the
head with the last. These schedules are ours, not the DAMI paper's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from dami_merge.interpolation.depth import Place
from dami_merge.interpolation.expression import build
from dami_router.errors import MisuseError

__all__ = ["SCHEDULES", "Schedule", "check_lambda", "parse_lambda"]


class Schedule(Protocol):
    """λ over depth. Frozen and hashable, so that mergekit can carry it as a parameter."""

    def lambda_at(self, place: Place) -> float:
        """Return λ at a place; raises MisuseError where the schedule does not fit the model."""
        ...


@dataclass(frozen=True)
class Ramp:
    """A straight line from a to b."""

    a: float
    b: float

    def lambda_at(self, place: Place) -> float:
        """Return a + (b−a)·x."""
        return self.a + (self.b - self.a) * place.x


@dataclass(frozen=True)
class Cosine:
    """Half a cosine wave from a to b."""

    a: float
    b: float

    def lambda_at(self, place: Place) -> float:
        """Return a + (b−a)·(1−cos πx)/2."""
        return self.a + (self.b - self.a) * (1.0 - math.cos(math.pi * place.x)) / 2.0


@dataclass(frozen=True)
class Sigmoid:
    """A logistic curve from about a to about b."""

    a: float
    b: float
    center: float = 0.5
    width: float = 0.1

    def __post_init__(self) -> None:
        if self.width <= 0:
            raise MisuseError(f"sigmoid: expected a width above 0, found {self.width:g}")

    def lambda_at(self, place: Place) -> float:
        """Return a + (b−a)·σ((x−center)/width)."""
        z = (place.x - self.center) / self.width
        sigma = 1.0 / (1.0 + math.exp(-z)) if z >= 0 else math.exp(z) / (1.0 + math.exp(z))
        return self.a + (self.b - self.a) * sigma


@dataclass(frozen=True)
class Step:
    """A jump from layer `at` on."""

    a: float
    b: float
    at: float

    def lambda_at(self, place: Place) -> float:
        """Return a before layer `at`, b from it on."""
        first = _layer_index("step: `at`", self.at, place)
        return self.a if place.nearest_layer < first else self.b


@dataclass(frozen=True)
class Window:
    """One λ on some layers, another elsewhere."""

    first: float
    last: float
    inside: float = 0.8
    outside: float = 0.0

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise MisuseError(f"window: expected first ≤ last, found first={self.first:g}, last={self.last:g}")

    def lambda_at(self, place: Place) -> float:
        """Return `inside` on layers first…last, else `outside`."""
        first = _layer_index("window: `first`", self.first, place)
        last = _layer_index("window: `last`", self.last, place)
        return self.inside if first <= place.nearest_layer <= last else self.outside


SCHEDULES: dict[str, type[Schedule]] = {
    "ramp": Ramp,
    "cosine": Cosine,
    "sigmoid": Sigmoid,
    "step": Step,
    "window": Window,
}
"""The schedules by the name that a recipe calls them."""


def parse_lambda(value: object, *, where: str = "lambda") -> float | Schedule:
    """Read what a recipe gives as λ: a finite number, or a schedule as a string.

    Numbers in strings are accepted as mergekit does (YAML reads `1e-1` as text). The range
    is not checked here: it depends on `allow_extrapolation`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise MisuseError(f"{where}: expected a number or a schedule such as ramp(0, 1), found {value!r:.60}")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return build(str(value), SCHEDULES, what=where)
    if not math.isfinite(value):
        raise MisuseError(f"{where}: expected a finite number in [0, 1], found {value}")
    return float(value)


def check_lambda(lambda_: float, *, allow_extrapolation: bool = False, where: str = "lambda") -> float:
    """Return λ, or refuse it: NaN and infinities always, outside [0, 1] unless allowed."""
    if not math.isfinite(lambda_):
        raise MisuseError(f"{where}: expected a finite number in [0, 1], found {lambda_}")
    if not allow_extrapolation and not 0.0 <= lambda_ <= 1.0:
        raise MisuseError(
            f"{where}: expected a number in [0, 1], found {lambda_!r}",
            hint="set `allow_extrapolation: true` under `parameters:` to leave the segment between the endpoints",
        )
    return lambda_


def _layer_index(what: str, value: float, place: Place) -> int:
    if value != int(value) or not 0 <= value < place.counted_layers:
        raise MisuseError(
            f"{what}: expected a layer index from 0 to {place.counted_layers - 1}, found {value:g}",
            hint=f"the model has {place.counted_layers} layers; a `filter` list keeps a schedule to one part of it",
        )
    return int(value)
