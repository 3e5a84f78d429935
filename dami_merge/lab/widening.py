"""The same pair with wider heads, for servers without kernels for heads of 16: vLLM on a CPU wants 32 or more.

The new dimensions are zero and lie between the old ones, where the rotary frequencies of a head of 2d include those of
one of d. The mean square of a head halves, which the norms' weights make good; the scale of attention is in q's norm.
All of it is linear in the weights, so that a merge of wider endpoints is the wider merge.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

__all__ = ["HEAD_SIZES", "widen", "widen_pair"]

HEAD_SIZES = (16, 32, 64)
"""The shipped pair's own, and those that it can be widened to."""


def widen_pair(source: Path, target: Path, head_size: int) -> None:
    """Write both endpoints of a pair again with heads of that size, one of `HEAD_SIZES`, in fp32."""
    for endpoint in ("instruct", "thinking"):
        widen(source / endpoint, target / endpoint, head_size)


def widen(source: Path, target: Path, head_size: int) -> None:
    """Write a Qwen3 checkpoint again with heads of 2, 4, … times the size, in fp32: the same up to rounding."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    size = config["head_dim"]
    weights = {name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()}
    while size < head_size:
        weights = {name: _doubled(name, tensor, size) for name, tensor in weights.items()}
        size *= 2
    made = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(made, target / "model.safetensors", metadata={"format": "pt"})
    kept = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    (target / "config.json").write_text(json.dumps({**kept, "head_dim": size, "torch_dtype": "float32"}, indent=2))


def _doubled(name: str, tensor: Any, size: int) -> Any:
    import torch

    # Where old dimension i goes: 2i in the first half; in the second, likewise.
    place = torch.tensor([2 * i if i < size // 2 else size + 2 * (i - size // 2) for i in range(size)])
    part = name.split(".")[-2]
    if part in ("q_norm", "k_norm"):
        wide = torch.zeros(2 * size)
        wide[place] = tensor / (1.0 if part == "q_norm" else math.sqrt(2))
        return wide
    if part in ("q_proj", "k_proj", "v_proj"):
        heads = tensor.reshape(-1, size, tensor.shape[1])
        wide = torch.zeros(heads.shape[0], 2 * size, tensor.shape[1])
        wide[:, place] = heads
        return wide.reshape(-1, tensor.shape[1])
    if part == "o_proj":
        heads = tensor.reshape(tensor.shape[0], -1, size)
        wide = torch.zeros(tensor.shape[0], heads.shape[1], 2 * size)
        wide[:, :, place] = heads
        return wide.reshape(tensor.shape[0], -1)
    return tensor
