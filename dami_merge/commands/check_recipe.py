"""What `dami check` says about a recipe, from configs, headers and a small sample of local weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dami_router.output import Output

_GB = 1e9


def check_recipe(output: Output, config: Path) -> int:
    """Check one recipe and say what a merge needs; returns 1 where its endpoints do not allow one."""
    from dami_merge.checkpoints.checkpoint import open_checkpoint
    from dami_merge.checkpoints.compatibility import compare
    from dami_merge.forecast import look_ahead
    from dami_merge.recipes.recipe import load_recipe
    from dami_merge.recipes.recipe_advice import advise

    recipe = load_recipe(config)
    instruct, thinking = open_checkpoint(recipe.instruct), open_checkpoint(recipe.thinking)
    findings = compare(instruct, thinking, dtype=recipe.dtype, only_instruct=recipe.only_instruct)
    facts = _facts(recipe, instruct)
    lines = _lines(recipe, instruct, facts)
    tools: tuple[str, ...] = ()
    if not any(f.severity == "error" for f in findings):
        outlook = look_ahead(recipe, instruct, thinking, output.note)
        findings += [*advise(recipe, instruct), *outlook.findings()]
        lines, facts, tools = [*lines, *outlook.lines()], facts | outlook.as_dict(), outlook.tools
    errors = sum(f.severity == "error" for f in findings)
    output.result(
        "\n".join([*lines, *map(str, findings), _verdict(len(findings), errors, tools)]),
        {"ok": not errors, "config": str(config), **facts, "findings": [f.as_dict() for f in findings]},
    )
    if not errors:
        output.hint(f"dami explain {config}   or   {tools[0] if recipe.family else tools[-1]} {config} OUT")
    return 1 if errors else 0


def _facts(recipe: Any, instruct: Any) -> dict[str, Any]:
    width = {"float64": 8, "float32": 4}.get(recipe.out_dtype or recipe.dtype or "", 2)
    size = instruct.parameters * width if recipe.out_dtype or recipe.dtype else instruct.nbytes
    largest = max((t.nbytes for t in instruct.tensors.values()), default=0)
    variants = len(recipe.family.lambdas) if recipe.family else 1
    return {
        "instruct": str(recipe.instruct),
        "thinking": str(recipe.thinking),
        "architecture": (instruct.config.get("architectures") or ["unknown"])[0],
        "parameters": instruct.parameters,
        "tensors": len(instruct.tensors),
        "variants": variants,
        "bytes_per_variant": size,
        "bytes_all_variants": size * variants,
        "download_bytes": 2 * instruct.nbytes if instruct.folder is None else 0,
        # mergekit holds a shard of output (5 GB by default) and a tensor's inputs in fp32 beside it
        "memory_bytes_mergekit": min(size, 5_000_000_000) + 4 * largest + 1_500_000_000,
        "free_bytes_here": shutil.disk_usage(Path.cwd()).free,
    }


def _lines(recipe: Any, instruct: Any, facts: dict[str, Any]) -> list[str]:
    layers = f", {_anatomy(instruct).layers} layers" if instruct.tensors else ""
    lines = [
        f"instruct  (λ=0)  {facts['instruct']}",
        f"thinking  (λ=1)  {facts['thinking']}",
        f"architecture     {facts['architecture']}, {_count(facts['parameters'])} parameters,"
        f" {facts['tensors']} tensors{layers}",
        f"one merge        {_size(facts['bytes_per_variant'])} on disk, about"
        f" {_size(facts['memory_bytes_mergekit'])} of memory with mergekit;"
        f" free here {_size(facts['free_bytes_here'])}",
    ]
    if recipe.family:
        values = ", ".join(f"{value:g}" for value in recipe.family.lambdas)
        lines.append(
            f"family           {recipe.family.name}, λ = {values}: {_size(facts['bytes_all_variants'])} on disk"
        )
    if facts["download_bytes"]:
        lines.append(f"download         {_size(facts['download_bytes'])} from the Hub")
    return lines


def _anatomy(instruct: Any) -> Any:
    from dami_merge.interpolation.depth import Anatomy

    return Anatomy.of(instruct.tensors, instruct.config)


def _verdict(findings: int, errors: int, tools: Sequence[str]) -> str:
    if errors:
        return f"not ready: {errors} error{'s' if errors > 1 else ''}"
    ready = f"ready to merge with {' or '.join(tools)}"
    return f"{ready}, {findings} warning{'s' if findings > 1 else ''}" if findings else ready


def _size(value: float) -> str:
    return f"{value / _GB:.1f} GB" if value >= _GB / 10 else f"{value / 1e6:.1f} MB"


def _count(value: float) -> str:
    return f"{value / 1e9:.1f}B" if value >= 1e9 else f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value:,}"
