"""Both endpoints' weights, read from safetensors files into pairs, and the one buffer for merged weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.interpolation.formula import BlockInterpolator
from dami_merge.live.blend import PairTensor
from dami_merge.live.spread import Vector
from dami_router.errors import CheckpointError

__all__ = ["Merger", "common_dtype", "load_pairs"]

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_BLOCK = {"cpu": 1 << 17, "cuda": 1 << 22}
"""Elements per block: on a CPU as many as its caches hold, on a GPU enough to occupy it."""
_SHOWN = 3


def common_dtype(sides: Sequence[Checkpoint], names: Sequence[str]) -> torch.dtype:
    """Return a dtype that holds both endpoints' parameters: their own, or fp32 (fp64) if they differ."""
    found = {_DTYPES[side.tensors[name].dtype] for side in sides for name in names}
    if len(found) == 1:
        return found.pop()
    return torch.float64 if torch.float64 in found else torch.float32


def check_parameters(side: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a checkpoint that lacks a parameter of the model, or stores it with another shape or an integer dtype."""
    missing = [name for name in shapes if name not in side.tensors]
    if missing:
        shown = ", ".join(f"`{name}`" for name in missing[:_SHOWN])
        raise CheckpointError(f"{side.ref}: lacks {len(missing)} of the model's {len(shapes)} tensors, such as {shown}")
    for name, shape in shapes.items():
        info = side.tensors[name]
        if info.shape != shape:
            raise CheckpointError(f"{side.ref}: `{name}` is {list(info.shape)}; its config.json makes it {list(shape)}")
        if not info.floating:
            raise CheckpointError(f"{side.ref}: `{name}` is {info.dtype}; expected a floating dtype")


def load_pairs(
    sides: tuple[Checkpoint, Checkpoint],
    shapes: Mapping[str, tuple[int, ...]],
    groups: Mapping[str, int],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, PairTensor]:
    """Read every parameter of both endpoints, straight from the mapped files into its place.

    Needs the memory of two models and no more. Raises CheckpointError if a file cannot be read.
    """
    pairs = {
        name: PairTensor(name, groups[name], torch.empty((2, *shape), dtype=dtype, device=device))
        for name, shape in shapes.items()
    }
    for end, side in enumerate(sides):
        _fill(side, {name: pair.ends[end] for name, pair in pairs.items()})
    return pairs


def _fill(side: Checkpoint, places: Mapping[str, torch.Tensor]) -> None:
    from safetensors import SafetensorError, safe_open

    assert side.folder is not None
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for name, place in places.items():
            file = side.tensors[name].file
            try:
                if file not in files:
                    files[file] = stack.enter_context(safe_open(side.folder / file, framework="pt"))
                place.copy_(files[file].get_tensor(name))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{side.folder / file}: `{name}` cannot be read: {error}") from None


class Merger:
    """Interpolates all parameters into one buffer of one model's size, allocated on first use.

    It uses the same arithmetic as `dami build`, so it produces the same bits.
    """

    def __init__(self, pairs: Sequence[PairTensor], device: torch.device) -> None:
        self._pairs = pairs
        self._size = _BLOCK.get(device.type, _BLOCK["cpu"])
        self._device = device
        self._interpolator: BlockInterpolator | None = None
        self.holds: Vector | None = None
        """The λ that the buffer holds; None before the first merge, and after one that failed."""

    def merge(self, vector: Vector) -> None:
        """Fill the buffer with the weights at these λ, one for each group."""
        before, self.holds = self.holds, None
        for pair in self._pairs:
            if pair.merged is None:
                pair.merged = torch.empty_like(pair.ends[0])
        if self._interpolator is None:
            self._interpolator = BlockInterpolator(self._size, str(self._device))
        for pair in self._pairs:
            # Along a path only some groups change from one λ to the next.
            if before is None or before[pair.group] != vector[pair.group]:
                self._merge_one(self._interpolator, pair, vector[pair.group])
        self.holds = vector

    def release(self) -> None:
        """Free the buffer."""
        self.holds = None
        for pair in self._pairs:
            pair.merged = None

    def _merge_one(self, interpolator: BlockInterpolator, pair: PairTensor, lambda_: float) -> None:
        assert pair.merged is not None
        flat = (pair.ends[0].flatten(), pair.ends[1].flatten(), pair.merged.flatten())
        for blocks in zip(*(torch.split(tensor, self._size) for tensor in flat), strict=True):
            interpolator.write(blocks[0], blocks[1], [lambda_], [blocks[2]])
