"""λ of a recipe grouped for reading: by layer and module."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from typing import Any

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.fp8 import views
from dami_merge.interpolation.depth import Anatomy
from dami_merge.interpolation.module_kind import module_of
from dami_merge.interpolation.schedule import check_lambda
from dami_merge.recipes.recipe import Recipe
from dami_router.errors import MisuseError

__all__ = ["Group", "grouped", "interpolated", "resolve"]


@dataclass(frozen=True)
class Group:
    """Neighbouring layers (`first` to `last`, None outside the layers) whose module has one λ."""

    stack: str
    first: int | None
    last: int | None
    module: str
    lambda_: float
    tensors: int

    def row(self) -> tuple[str, str, str, str]:
        """Return the group as a table row."""
        layers = (
            "-" if self.first is None else f"{self.first}" if self.first == self.last else f"{self.first}–{self.last}"
        )
        stack = f"{self.stack} " if self.stack else ""
        return stack + layers, self.module, f"{self.lambda_:.6g}", str(self.tensors)

    def as_dict(self) -> dict[str, Any]:
        """Return the group for JSON."""
        data = asdict(self)
        data["lambda"] = data.pop("lambda_")
        return data


def interpolated(recipe: Recipe, instruct: Checkpoint) -> list[str]:
    """Return Instruct's tensors that have a λ: without fp8 scales, and without parts that `only_instruct` names."""
    return [name for name in views(instruct) if not any(text in name for text in recipe.only_instruct)]


def resolve(recipe: Recipe, names: list[str], anatomy: Anatomy, lambda_: float | None) -> dict[str, float]:
    """Return λ for each tensor: the recipe's own, or its family's at the scalar `lambda_` in [0, 1]."""
    if lambda_ is None:
        return {name: recipe.lambda_for(name, anatomy) for name in names}
    if recipe.family is None:
        raise MisuseError("the recipe has no `family:` block")
    check_lambda(lambda_, where="--lambda")
    return {name: recipe.family.lambda_at(lambda_, name, anatomy.place(name)) for name in names}


def grouped(values: dict[str, float], anatomy: Anatomy) -> list[Group]:
    """Group tensors by layer and module, joining neighbouring layers of equal λ.

    A layer whose tensors all have one λ is one group, `all`; a module whose tensors differ in
    λ is told apart by their names.
    """
    layers: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    before: list[Group] = []
    after: list[Group] = []
    for name, value in values.items():
        place = anatomy.place(name)
        if place.index is None:
            side = before if place.x == 0.0 else after
            side.append(Group(anatomy.part_of(name), None, None, module_of(name), value, 1))
        else:
            layers[anatomy.stack_of(name), place.index][name] = value
    return [*before, *_joined(layers), *after]


def _joined(layers: dict[tuple[str, int], dict[str, float]]) -> list[Group]:
    several = len({stack for stack, _ in layers}) > 1
    done: list[Group] = []
    open_: dict[tuple[str, str], Group] = {}
    for (stack, index), tensors in sorted(layers.items()):
        for label, value, count in _parts(tensors):
            key = (stack, label)
            old = open_.get(key)
            if old is not None and old.last == index - 1 and old.lambda_ == value:
                open_[key] = replace(old, last=index, tensors=old.tensors + count)
                continue
            if old is not None:
                done.append(old)
            open_[key] = Group(stack if several else "", index, index, label, value, count)
    done += open_.values()
    return sorted(done, key=lambda g: (g.stack, g.first or 0, g.module))


def _parts(tensors: dict[str, float]) -> list[tuple[str, float, int]]:
    if len(set(tensors.values())) == 1:
        return [("all", next(iter(tensors.values())), len(tensors))]
    modules: dict[str, dict[str, float]] = defaultdict(dict)
    for name, value in tensors.items():
        modules[module_of(name)][name] = value
    parts = []
    for module, inside in modules.items():
        counts = Counter((_label(module, name, inside), value) for name, value in inside.items())
        parts += [(label, value, count) for (label, value), count in counts.items()]
    return parts


def _label(module: str, name: str, inside: dict[str, float]) -> str:
    if len(set(inside.values())) == 1:
        return module
    return f"{module} {name.removesuffix('.weight').removesuffix('.bias').rsplit('.', 1)[-1]}"
