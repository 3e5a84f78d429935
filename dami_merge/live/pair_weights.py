"""Both endpoints' weights, read from safetensors files into pairs, and the one buffer for merged weights."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dami_merge.checkpoints.sides import Sides
from dami_merge.checkpoints.stored_values import StoredValues
from dami_merge.checkpoints.tensor_view import TensorView
from dami_merge.interpolation.formula import BlockInterpolator
from dami_merge.live.blend import PairTensor
from dami_merge.live.sources import Source
from dami_merge.live.spread import Vector
from dami_router.errors import CheckpointError

__all__ = ["Merger", "load_pairs"]

_BLOCK = {"cpu": 1 << 17, "cuda": 1 << 22}
"""Elements per block: on a CPU as many as its caches hold, on a GPU enough to occupy it."""


def load_pairs(
    folders: Sides[Path],
    sources: Mapping[str, Source],
    groups: Mapping[str, int],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, PairTensor]:
    """Read every parameter of both endpoints, straight from the mapped files into its place.

    Needs the memory of two models and no more. Raises CheckpointError if a file cannot be read.
    """
    pairs = {}
    for name, source in sources.items():
        ends = torch.empty((2, *source.views.instruct.shape), dtype=dtype, device=device)
        pairs[name] = PairTensor(name, groups[name], ends)
    for end, folder in enumerate(folders):
        reader = _Reader(folder)
        for name, pair in pairs.items():
            view = sources[name].views[end]
            if sum(piece.count for piece in view.pieces) < view.elements:
                # As in a built variant: what Thinking lacks is Instruct's.
                pair.ends[end].copy_(pair.ends[0])
            reader.fill(name, view, pair.ends[end].view(-1))
    return pairs


class _Reader:
    """Reads tensors of one endpoint from its mapped files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._values = StoredValues(folder)
        self._files: dict[str, memoryview] = {}

    def fill(self, name: str, view: TensorView, place: torch.Tensor) -> None:
        """Write the elements of a view to their place, 1-D."""
        for piece in view.pieces:
            file, start, end = piece.bytes
            try:
                data = self._mapped(file)[start:end]
                if len(data) != end - start:
                    raise CheckpointError(f"{self._folder / file}: `{name}` is cut off; download or copy it again")
                device = str(place.device) if piece.scaling else "cpu"
                place[piece.start : piece.end].copy_(self._values.of(piece, data, place.dtype, device))
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{self._folder / file}: `{name}` cannot be read: {error}") from None

    def _mapped(self, file: str) -> memoryview:
        if file not in self._files:
            with (self._folder / file).open("rb") as opened:
                # A private copy on write: PyTorch warns of memory that cannot be written. Nothing writes to it.
                self._files[file] = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY))
        return self._files[file]


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
