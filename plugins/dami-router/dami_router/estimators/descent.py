"""L-BFGS: minimise a smooth function from its values and gradients; deterministic, without a learning rate."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["minimise"]

Floats = NDArray[np.float64]
_MEMORY = 10


def minimise(
    function: Callable[[Floats], tuple[float, Floats]], start: Floats, *, steps: int = 150, tolerance: float = 1e-6
) -> Floats:
    """Return the minimiser of `function` (value, gradient) after at most `steps` steps; never worse than `start`.

    Stops when a step gains less than `tolerance` of the value, or nothing.
    """
    x = start
    value, gradient = function(x)
    past: deque[tuple[Floats, Floats]] = deque(maxlen=_MEMORY)
    for _ in range(steps):
        direction = -_curved(gradient, past)
        slope = float(gradient @ direction)
        if slope >= 0:
            past.clear()
            direction, slope = -gradient, -float(gradient @ gradient)
        found = _search(function, x, value, direction, slope)
        if found is None:
            break
        moved, lower, turned = found
        s, y = moved - x, turned - gradient
        if s @ y > 1e-12 * float(y @ y):
            past.append((s, y))
        gained = value - lower
        x, value, gradient = moved, lower, turned
        if gained <= tolerance * max(abs(value), 1e-12):
            break
    return x


def _curved(gradient: Floats, past: deque[tuple[Floats, Floats]]) -> Floats:
    """Return the gradient times an estimate of the inverse Hessian (the two-loop recursion)."""
    q, kept = gradient.copy(), []
    for s, y in reversed(past):
        a = float(s @ q) / float(s @ y)
        q = q - a * y
        kept.append(a)
    if past:
        s, y = past[-1]
        q = q * (float(s @ y) / float(y @ y))
    for (s, y), a in zip(past, reversed(kept), strict=True):
        q = q + (a - float(y @ q) / float(s @ y)) * s
    return q


def _search(
    function: Callable[[Floats], tuple[float, Floats]], x: Floats, value: float, direction: Floats, slope: float
) -> tuple[Floats, float, Floats] | None:
    """Return the first point along a direction that gains enough for its length, halving from a full step."""
    length = 1.0
    for _ in range(40):
        moved = x + length * direction
        lower, turned = function(moved)
        if np.isfinite(lower) and lower <= value + 1e-4 * length * slope:
            return moved, lower, turned
        length *= 0.5
    return None
