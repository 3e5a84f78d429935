"""λ of every parameter for a request's λ: a number along a path, a schedule, or a recipe's own setting.

Parameters that always share a λ form a group, so a row's λ is a short vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
_Key = tuple[Path, Place, float | None]
"""What decides a tensor's λ: its path, its place, and λ in the recipe."""


class Spread:
    """Turns a request's λ into one λ for each group of parameters.

    `names` has for each parameter the tensors of the checkpoint that it holds: one, or all experts of a layer.
    `path` is the family's; `recipe`, if given, sets λ for requests that do not. Raises MisuseError if they give
    tensors of one parameter different λ.
    """

    def __init__(
        self, names: Mapping[str, Sequence[str]], anatomy: Anatomy, path: Setting[Path], recipe: Recipe | None = None
    ) -> None:
        self.groups: dict[str, int] = {}
        """The group of every parameter."""
        self._members: list[_Key] = []
        seen: dict[_Key, int] = {}
        for parameter, tensors in names.items():
            keys = dict.fromkeys(_key(name, anatomy, path, recipe) for name in tensors)
            if len(keys) > 1:
                raise MisuseError(
                    f"`{parameter}` holds {len(tensors)} tensors, such as `{tensors[0]}`, which path or λ tell apart;"
                    " a live model has one λ for them",
                    hint="use filters that name all experts of a layer, or build the variants with `dami build`",
                )
            self.groups[parameter] = seen.setdefault(next(iter(keys)), len(seen))
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


def _key(name: str, anatomy: Anatomy, path: Setting[Path], recipe: Recipe | None) -> _Key:
    place = anatomy.place(name)
    return path.resolve(name, place.x) or Uniform(), place, recipe.lambda_for(name, anatomy) if recipe else None
