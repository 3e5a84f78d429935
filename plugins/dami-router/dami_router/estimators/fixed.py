"""The same λ for every query; ends every chain."""

from __future__ import annotations

from dataclasses import dataclass

from dami_router.errors import MisuseError
from dami_router.estimators.query import Estimate, Query

__all__ = ["Fixed"]


@dataclass(frozen=True)
class Fixed:
    """λ(q) = `lambda_` in [0, 1]; never fails."""

    lambda_: float
    name: str = "fixed"

    def __post_init__(self) -> None:
        if not 0.0 <= self.lambda_ <= 1.0:
            raise MisuseError(f"fixed: expected λ in [0, 1], found {self.lambda_:g}")

    async def estimate(self, query: Query) -> Estimate:  # noqa: ARG002
        """Return the constant."""
        return Estimate(self.lambda_, self.name)
