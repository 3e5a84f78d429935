"""`dami merge`: mergekit-yaml with the method registered, where start-up files are disabled."""

from __future__ import annotations

from pathlib import Path

import click

from dami_router.cli import command
from dami_router.output import Output


@command(
    "merge",
    examples=("dami merge merge_configs/lab.yml out", "dami merge recipe.yml out --low-cpu-memory --cuda"),
    help="Run mergekit-yaml with the method `dami` registered, in environments where Python's start-up files are "
    "disabled (python -S, DAMI_NO_AUTOLOAD=1, some bundles). The recipe is read strictly first. An existing folder is "
    "never overwritten, and OUT is either complete or absent. Other options are passed to mergekit-yaml; see "
    "`mergekit-yaml --help`.",
)
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def merge(output: Output, config: Path, out: Path, options: tuple[str, ...]) -> None:
    """Merge one recipe."""
    from dami_merge.merging import merge_recipe
    from dami_merge.recipes.recipe import MergekitOnlyError, load_recipe

    try:
        load_recipe(config)
    except MergekitOnlyError:
        output.note(f"{config}: has features that only mergekit reads; it is not checked first")
    merge_recipe(config, out, options)
    files = sorted(path.name for path in out.iterdir())
    output.result(f"merged into {out}: {', '.join(files)}", {"out": str(out), "files": files})
