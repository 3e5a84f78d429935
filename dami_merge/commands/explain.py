"""`dami explain`: λ for every layer and module of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dami_router.cli import command
from dami_router.errors import MisuseError
from dami_router.output import Output, table


@command(
    "explain",
    examples=(
        "dami explain merge_configs/qwen3-4b-2507-late.yml",
        "dami explain recipe.yml --lambda 0.4",
        "dami explain recipe.yml --tensors --json",
    ),
    help="Show λ for every layer and module of a recipe, or for every tensor. With --lambda, show how the "
    "recipe's family spreads that λ along its path. Reads configs and safetensors headers, but no weights.",
)
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--lambda", "lambda_", type=float, help="The family's λ; without it, the recipe's own `lambda`.")
@click.option("--tensors", is_flag=True, help="Print one line for each tensor instead of groups.")
def explain(output: Output, config: Path, lambda_: float | None, tensors: bool) -> None:
    """Resolve and show λ."""
    from dami_merge.checkpoints.checkpoint import open_checkpoint
    from dami_merge.interpolation.depth import Anatomy
    from dami_merge.recipes.explanation import grouped, interpolated, resolve
    from dami_merge.recipes.recipe import load_recipe

    recipe = load_recipe(config)
    if lambda_ is not None and recipe.family is None:
        raise MisuseError(
            f"{config}: --lambda follows a path, but the recipe has no `family:` block",
            hint="add one, or omit --lambda to see the recipe's own λ",
        )
    instruct = open_checkpoint(recipe.instruct)
    anatomy = Anatomy.of(instruct.tensors, instruct.config)
    recipe.check_layers(anatomy)
    values = resolve(recipe, interpolated(recipe, instruct), anatomy, lambda_)
    groups = grouped(values, anatomy)
    text = _tensor_table(values) if tensors else table(("layers", "module", "λ", "tensors"), [g.row() for g in groups])
    data: dict[str, Any] = {
        "config": str(config), "lambda": lambda_, "layers": anatomy.layers,
        "groups": [group.as_dict() for group in groups],
    }  # fmt: skip
    if tensors:
        data["tensors"] = values
    output.result(text, data)
    output.hint(f"{'dami build' if recipe.family else 'mergekit-yaml'} {config} OUT")


def _tensor_table(values: dict[str, float]) -> str:
    return table(("tensor", "λ"), [(name, f"{value:.6g}") for name, value in values.items()])
