"""Helpers of the builder's tests: build from recipe text, read variants, write odd checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from dami_merge.build import BuildReport, Options, build_family
from dami_merge.recipes.recipe import parse_recipe
from support.pairs import Pair

FAMILY: dict[str, Any] = {"name": "Fam", "lambdas": [0, 0.25, 0.5, 0.8, 1]}
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Built(NamedTuple):
    """A family that was built: its folder, its recipe's text and the report."""

    out: Path
    recipe: str
    report: BuildReport

    def folder(self, lambda_: float) -> Path:
        """Return the folder of one variant."""
        return next(self.out / v.folder for v in self.report.manifest.variants if v.lambda_ == lambda_)


def build(recipe: str, out: Path, name: str = "recipe.yml", **options: Any) -> Built:
    """Build a recipe given as text."""
    return Built(out, recipe, build_family(parse_recipe(recipe, name), out, Options(**options)))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint folder."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit, the sign of zero and NaNs included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    kind = _INTEGERS[a.element_size()]
    return torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder but the lock, by its relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def reshard(folder: Path, shards: int) -> None:
    """Cut a checkpoint's weights into several files with an index."""
    tensors = weights(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    names = list(tensors)
    size = math.ceil(len(names) / shards)
    groups = [names[i : i + size] for i in range(0, len(names), size)]
    index = {}
    for i, group in enumerate(groups):
        file = f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: tensors[name] for name in group}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(group, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def write_pair(
    root: Path, instruct: Mapping[str, torch.Tensor], thinking: Mapping[str, torch.Tensor], **config: Any
) -> Pair:
    """Write two bare checkpoints with one config."""
    from support.pairs import write_raw

    settings = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "num_hidden_layers": 2, **config}
    return Pair(
        write_raw(root / "instruct", dict(instruct), settings), write_raw(root / "thinking", dict(thinking), settings)
    )
