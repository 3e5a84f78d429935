"""fp8 checkpoints: which tensors are stored with scales, and which scales are whose.

A value is the stored number times its scale, whatever the scale's name: `weight_scale_inv` of
DeepSeek and Transformers (a scale for each block of 128 × 128), `weight_scale` of compressed-tensors,
fbgemm and modelopt (one for the tensor, or one for each row). Other quantisations are not read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from dami_merge.checkpoints.checkpoint import Checkpoint, TensorInfo
from dami_merge.checkpoints.tensor_view import Piece, Scaling, TensorView, plain

__all__ = ["is_fp8", "unreadable_quantisation", "views"]

_FP8 = ("F8_E4M3", "F8_E5M2")
_SCALES = ("_scale_inv", "_scale")
_SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0")
_BESIDE = ("_activation_scale", "_input_scale", "_scale_2")
# Scales of activations and of the key-value cache, which an unquantised model does not have.
_ACTIVATIONS = re.compile(r"\.(?:activation_scale|input_scale|output_scale|[qkv]_scale|kv_scale)$")
_QUANTISED = re.compile(r"^(?:F8_|F6_|F4)")
_BLOCK = (128, 128)


def is_fp8(side: Checkpoint) -> bool:
    """Whether any tensor is stored as 8-bit floats."""
    return any(info.dtype in _FP8 for info in side.tensors.values())


def unreadable_quantisation(side: Checkpoint) -> str | None:
    """Return what an endpoint is quantised with that cannot be read; None for unquantised and fp8 endpoints."""
    config = side.config.get("quantization_config")
    method = str(config.get("quant_method", "unknown")) if isinstance(config, Mapping) else None
    odd = sorted({view.dtype for view in views(side).values() if _QUANTISED.match(view.dtype)})
    if odd:
        return method or ", ".join(odd)
    packed = any(_scale_of(side, name) for name, info in side.tensors.items() if info.dtype in ("I8", "U8", "I32"))
    if method is None:
        return "packed integers" if packed else None
    known = isinstance(config, Mapping) and _is_fp8_method(method, config)
    return None if known and is_fp8(side) and not packed else method


def views(side: Checkpoint) -> dict[str, TensorView]:
    """Return an endpoint's tensors with fp8 ones as the bf16 that they stand for, and without their scales."""
    if not is_fp8(side):
        return {name: plain(info) for name, info in side.tensors.items()}
    found, scales = {}, set()
    for name, info in side.tensors.items():
        scale = _scale_of(side, name) if info.dtype in _FP8 else None
        scaling = _scaling(info, side.tensors[scale], _block_size(side.config)) if scale else None
        found[name] = plain(info)
        if scale and scaling:
            whole = Piece(0, math.prod(info.shape), info, 0, scaling)
            found[name] = TensorView(info.shape, "BF16", (whole,) if whole.count else ())
            scales |= {scale, *(name + end for end in _BESIDE)}
    return {n: v for n, v in found.items() if n not in scales and not _ACTIVATIONS.search(n)}


def _scale_of(side: Checkpoint, name: str) -> str | None:
    return next((name + end for end in _SCALES if name + end in side.tensors), None)


def _scaling(info: TensorInfo, scale: TensorInfo, block: tuple[int, int]) -> Scaling | None:
    """Return how a tensor's scales lie over it, or None where they do not fit."""
    if scale.dtype not in _SCALE_DTYPES or len(info.shape) not in (2, 3):
        return None
    *outer, rows, columns = info.shape
    stack = math.prod(outer)
    shape, count = scale.shape, math.prod(scale.shape)
    if count == 1:
        return Scaling(scale, rows, columns, (rows, columns), (1, 1), 1)
    if outer and count == stack:
        return Scaling(scale, rows, columns, (rows, columns), (1, 1), stack)
    if shape == (*outer, rows):
        return Scaling(scale, rows, columns, (1, columns), (rows, 1), stack)
    if shape[:-2] != tuple(outer) or len(shape) != len(info.shape):
        return None
    grid = shape[-2], shape[-1]
    if (-(-rows // block[0]), -(-columns // block[1])) == grid:
        return Scaling(scale, rows, columns, block, grid, stack)
    if not all(grid) or rows % grid[0] or columns % grid[1]:
        return None
    return Scaling(scale, rows, columns, (rows // grid[0], columns // grid[1]), grid, stack)


def _block_size(config: Mapping[str, Any]) -> tuple[int, int]:
    quantisation = config.get("quantization_config")
    said = quantisation.get("weight_block_size") if isinstance(quantisation, Mapping) else None
    if isinstance(said, list) and len(said) == 2 and all(type(size) is int and size > 0 for size in said):
        return said[0], said[1]
    return _BLOCK


def _is_fp8_method(method: str, config: Mapping[str, Any]) -> bool:
    if method in ("fp8", "fbgemm_fp8", "finegrained_fp8"):
        return True
    if method == "modelopt":
        return config.get("quant_algo") == "FP8"
    if method != "compressed-tensors":
        return False
    groups = config.get("config_groups")
    weights = [group.get("weights") for group in groups.values()] if isinstance(groups, Mapping) else []
    return bool(weights) and all(
        isinstance(part, Mapping) and part.get("num_bits") == 8 and part.get("type") == "float" for part in weights
    )
