"""From λ(q) to a variant that exists."""

from __future__ import annotations

from collections.abc import Sequence

from dami_router.errors import MisuseError

__all__ = ["nearest"]


def nearest(lambda_: float, lambdas: Sequence[float]) -> float:
    """Return the variant's λ nearest to λ(q); of two equally near, the smaller."""
    if not lambdas:
        raise MisuseError("no variant to choose from")
    return min(sorted(lambdas), key=lambda variant: abs(variant - lambda_))
