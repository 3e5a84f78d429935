"""λ of every parameter for a request's λ: a number along a path, a schedule, or a recipe's own setting.

Parameters that always share a λ form a group, so a row's λ is a short vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from numbers import Real
from typing import Any, cast

from dami_merge.interpolation.depth import Anatomy, Place
from dami_merge.interpolation.path import Path, Uniform
from dami_merge.interpolation.schedule import Schedule, check_lambda
from dami_merge.interpolation.setting import Setting
from dami_merge.recipes.recipe import Recipe
from dami_router.errors import MisuseError

__all__ = ["Spread", "Vector"]

Vector = tuple[float, ...]
"""λ for each group of parameters."""

_REMEMBERED = 4096


class Spread:
    """Turns a request's λ into one λ for each group of parameters.

    `names` are the parameters' names in the checkpoint; `path` is the family's; `recipe`, if given, sets λ for
    requests that do not.
    """

    def __init__(
        self, names: Sequence[str], anatomy: Anatomy, path: Setting[Path], recipe: Recipe | None = None
    ) -> None:
        self.groups: dict[str, int] = {}
        """The group of every parameter."""
        self._members: list[tuple[Path, Place, float | None]] = []
        seen: dict[tuple[Path, Place, float | None], int] = {}
        for name in names:
            place = anatomy.place(name)
            own = recipe.lambda_for(name, anatomy) if recipe else None
            key = (path.resolve(name, place.x) or Uniform(), place, own)
            self.groups[name] = seen.setdefault(key, len(seen))
        self._members = list(seen)
        self._has_recipe = recipe is not None
        self._cached = lru_cache(_REMEMBERED)(self._vector)

    def vector(self, lambda_: float | Schedule | None) -> Vector:
        """Return λ for each group; raises MisuseError if it is outside [0, 1], or missing without a recipe."""
        cached: Callable[[Any], Vector] = self._cached
        return cached(lambda_)

    def _vector(self, lambda_: float | Schedule | None) -> Vector:
        if lambda_ is None:
            return self._recipe_vector()
        if not isinstance(lambda_, Real):
            schedule = cast("Schedule", lambda_)
            return tuple(check_lambda(schedule.lambda_at(place), where="λ") for _, place, _ in self._members)
        number = check_lambda(float(lambda_), where="λ")
        return tuple(path.lambda_at(number, place) for path, place, _ in self._members)

    def _recipe_vector(self) -> Vector:
        if not self._has_recipe:
            raise MisuseError("no λ given; expected a number in [0, 1]")
        return tuple(own for _, _, own in self._members if own is not None)
