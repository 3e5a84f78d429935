"""`mergekit_config.yml` of one variant: the family's recipe with this variant's λ, for stock mergekit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dami_merge.checkpoints.checkpoint import open_checkpoint
from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.interpolation.depth import Anatomy
from dami_merge.recipes.explanation import resolve
from dami_merge.recipes.recipe import parse_recipe
from dami_router.manifest.family import Family, Variant

__all__ = ["lambdas_of", "layer_lambdas", "mergekit_config"]


def lambdas_of(family: Family, variant: Variant, folder: Path) -> tuple[dict[str, float], Anatomy]:
    """Return λ of every tensor of a variant in `folder`, from the recipe and the tensors' names."""
    recipe = parse_recipe(family.recipe, "recipe")
    checkpoint = open_checkpoint(ModelRef(str(folder.absolute())))
    anatomy = Anatomy.of(checkpoint.tensors, checkpoint.config)
    scalar = variant.lambda_ if recipe.family is not None else None
    return resolve(recipe, list(checkpoint.tensors), anatomy, scalar), anatomy


def layer_lambdas(values: Mapping[str, float], anatomy: Anatomy) -> list[float]:
    """Return the mean λ of each layer's tensors, first to last, of the longest stack of layers."""
    layers: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, value in values.items():
        index = anatomy.place(name).index
        if index is not None:
            layers[anatomy.stack_of(name)][index].append(value)
    main = max(layers.values(), key=len, default={})
    return [sum(main[i]) / len(main[i]) for i in sorted(main)]


def mergekit_config(family: Family, values: Mapping[str, float], anatomy: Anatomy) -> str:
    """Return the text of the configuration, with which mergekit gives every tensor its λ in `values`.

    A recipe without a `family:` block is returned unchanged.
    """
    recipe = parse_recipe(family.recipe, "recipe")
    if recipe.family is None:
        return family.recipe
    data = dict(recipe.document.data)
    data.pop("family")
    data["parameters"] = {**(data.get("parameters") or {}), "lambda": _setting(values, anatomy)}
    for part in data.get("slices") or ():
        (part.get("parameters") or {}).pop("lambda", None)
    head = f"# One variant of the family {family.name}; the family's own recipe is in the card and the manifest.\n"
    return head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _setting(values: Mapping[str, float], anatomy: Anatomy) -> float | list[dict[str, Any]]:
    common = _most_common(list(values.values()))
    if all(value == common for value in values.values()):
        return common
    options: list[dict[str, Any]] = []
    for layer, tensors in _layers(values, anatomy).items():
        if len(set(tensors.values())) == 1:
            # The dot keeps `layers.1.` from matching `layers.10.`.
            options.append({"filter": f"{layer}.", "value": next(iter(tensors.values()))})
        else:
            options += [{"filter": name, "value": value} for name, value in tensors.items()]
    outside = {name: value for name, value in values.items() if anatomy.place(name).index is None}
    options += [{"filter": name, "value": value} for name, value in outside.items()]
    return [option for option in options if option["value"] != common] + [{"value": common}]


def _layers(values: Mapping[str, float], anatomy: Anatomy) -> dict[str, dict[str, float]]:
    layers: dict[str, dict[str, float]] = defaultdict(dict)
    for name, value in values.items():
        index = anatomy.place(name).index
        if index is not None:
            layers[f"{anatomy.stack_of(name)}.{index}"][name] = value
    return layers


def _most_common(values: Sequence[float]) -> float:
    return max(sorted(set(values)), key=values.count)
