"""How a family's one λ spreads over the layers: λ ↦ (λ_l).

    uniform    λ_l = λ
    late(k)    λ_l = clip((1+k)λ − k(1−x_l), 0, 1): layers near the output turn first
    early(k)   the same with x_l for 1−x_l: layers near the input turn first
    power(p)   λ_l = λ^p

Every path has λ_l(0) = 0 and λ_l(1) = 1 and is monotone in λ, so that a family always begins
and ends at its endpoints. Paths are ours, not the DAMI paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dami_merge.interpolation.depth import Place
from dami_merge.interpolation.expression import build
from dami_router.errors import MisuseError

__all__ = ["PATHS", "Path", "Uniform", "parse_path"]


class Path(Protocol):
    """A family's scalar λ, spread over depth. Frozen and hashable."""

    def lambda_at(self, lambda_: float, place: Place) -> float:
        """Return λ_l in [0, 1] for the family's λ in [0, 1]."""
        ...


@dataclass(frozen=True)
class Uniform:
    """The same λ everywhere."""

    def lambda_at(self, lambda_: float, place: Place) -> float:  # noqa: ARG002
        """Return λ."""
        return lambda_


@dataclass(frozen=True)
class Late:
    """Layers near the output turn first; k ≥ 0 says by how much."""

    k: float

    def __post_init__(self) -> None:
        _not_negative("late: k", self.k)

    def lambda_at(self, lambda_: float, place: Place) -> float:
        """Return clip((1+k)λ − k(1−x), 0, 1)."""
        return _spread(lambda_, self.k, 1.0 - place.x)


@dataclass(frozen=True)
class Early:
    """Layers near the input turn first; k ≥ 0 says by how much."""

    k: float

    def __post_init__(self) -> None:
        _not_negative("early: k", self.k)

    def lambda_at(self, lambda_: float, place: Place) -> float:
        """Return clip((1+k)λ − k·x, 0, 1)."""
        return _spread(lambda_, self.k, place.x)


@dataclass(frozen=True)
class Power:
    """λ to a power p > 0: behind the others for p > 1, ahead for p < 1."""

    p: float

    def __post_init__(self) -> None:
        if self.p <= 0:
            raise MisuseError(f"power: expected p above 0, found {self.p:g}")

    def lambda_at(self, lambda_: float, place: Place) -> float:  # noqa: ARG002
        """Return λ^p."""
        return float(lambda_**self.p)


PATHS: dict[str, type[Path]] = {"uniform": Uniform, "late": Late, "early": Early, "power": Power}
"""The paths by the name that a recipe calls them."""


def parse_path(value: object, *, where: str = "path") -> Path:
    """Read a path from a recipe: `uniform`, `late(0.5)`, `early(0.5)` or `power(2)`."""
    if not isinstance(value, str):
        raise MisuseError(f"{where}: expected a path such as uniform or late(0.5), found {value!r:.60}")
    return build(value, PATHS, what=where)


def _spread(lambda_: float, k: float, behind: float) -> float:
    # The ends are exact by definition; rounding must not make 0.9999999 of an endpoint.
    if lambda_ in (0.0, 1.0):
        return lambda_
    return min(max((1.0 + k) * lambda_ - k * behind, 0.0), 1.0)


def _not_negative(what: str, value: float) -> None:
    if value < 0:
        raise MisuseError(f"{what}: expected a number of at least 0, found {value:g}")
