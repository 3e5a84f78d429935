"""The same model with heads of twice the size, the new half zero: vLLM on a CPU has no heads of 16.

The new dimensions lie between the old ones, where the rotary frequencies of a head of 2d include those of one of d. The
mean square of a head halves, which the norms' weights make good, and the scale of attention is in q's.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any


def widen(source: Path, target: Path) -> None:
    """Write a Qwen3 checkpoint again, in fp32; its answers are the same."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    size = config["head_dim"]
    weights = {name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()}
    made = {name: _widened(name, tensor, size).contiguous() for name, tensor in weights.items()}
    save_file(made, target / "model.safetensors", metadata={"format": "pt"})
    kept = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    (target / "config.json").write_text(json.dumps({**kept, "head_dim": 2 * size, "torch_dtype": "float32"}))


def _widened(name: str, tensor: Any, size: int) -> Any:
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
