"""`dami build`: a whole family in one pass."""

from __future__ import annotations

import re
import time
from functools import partial
from pathlib import Path

import click

from dami_router.cli import command
from dami_router.errors import MisuseError
from dami_router.output import Output, table

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@command(
    "build",
    examples=(
        "dami build merge_configs/lab-family.yml out",
        "dami build recipe.yml out --only 0.4 --only 0.6",
        "dami build recipe.yml out --max-shard-size 5GB",
    ),
    help="Build every variant of a recipe's family in one pass: one folder per variant, and dami_family.json. "
    "Both endpoints are read once, in constant memory. To resume an interrupted build, run the same command "
    "again; finished variants are kept unless the recipe or an endpoint changed. A recipe without a `family:` "
    "block builds one variant.",
)
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--only", type=float, multiple=True, help="Build only this λ of the family. Repeatable.")
@click.option("--max-shard-size", help="Split weight files at this size, such as 5GB. Default: as Instruct's are.")
@click.option("--device", default="cpu", show_default=True, help="Device to compute on: cpu or cuda.")
@click.option("--trust-remote-code", is_flag=True, help="Copy Instruct's Python files into the variants, unread.")
def build(
    output: Output,
    config: Path,
    out: Path,
    only: tuple[float, ...],
    max_shard_size: str | None,
    device: str,
    trust_remote_code: bool,
) -> None:
    """Build a recipe's family."""
    limit = parse_size(max_shard_size) if max_shard_size is not None else None
    from dami_merge.build import Options, build_family
    from dami_merge.commands.byte_bar import byte_bar
    from dami_merge.recipes.recipe import load_recipe

    recipe = load_recipe(config)
    started = time.perf_counter()
    options = Options(only, limit, device, trust_remote_code)
    report = build_family(recipe, out, options, progress=partial(byte_bar, "build"))
    seconds = time.perf_counter() - started
    for warning in report.warnings:
        output.warning(warning)
    rows = [
        (f"{v.lambda_:g}", v.id, "built" if v.id in report.built else "kept", v.chat_template.source)
        for v in report.manifest.variants
    ]
    text = f"{table(('λ', 'variant', '', 'template'), rows)}\n{report.bytes_written / 1e9:.2f} GB in {seconds:.1f} s"
    output.result(
        text,
        {
            "out": str(out), "name": report.manifest.name, "manifest": str(out / "dami_family.json"),
            "built": list(report.built), "kept": list(report.kept), "bytes_written": report.bytes_written,
            "seconds": round(seconds, 3),
            "variants": [{"id": v.id, "lambda": v.lambda_, "folder": str(out / v.folder)}
                         for v in report.manifest.variants],
        },
    )  # fmt: skip
    output.hint(f"dami verify {out}")


def parse_size(text: str) -> int:
    """Return bytes for `5GB`, `500MB`, `2GiB` or a plain number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?B|)\s*", text.upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size <= 0:
        raise MisuseError(f"--max-shard-size: expected a size such as 5GB or 500MB, found `{text:.40}`")
    return size
