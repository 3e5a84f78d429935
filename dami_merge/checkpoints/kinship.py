"""How far apart two endpoints lie, from a bounded sample of their weights.

`relative_distance` reads at most a megabyte of each endpoint and `weight_gap` at most three, so that `dami check`
can recognise identical and unrelated endpoints, and say how far apart related ones are, before any real work.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dami_merge.checkpoints.checkpoint import Checkpoint, TensorInfo
from dami_merge.checkpoints.matching import match
from dami_merge.checkpoints.tensor_view import Piece, Scaling, TensorView
from dami_merge.interpolation.module_kind import module_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["WeightGap", "relative_distance", "weight_gap"]

_TENSORS = 16
_BYTES = 1 << 16
_PIECES = 16
_ELEMENTS = 1 << 14
_GOLDEN = (math.sqrt(5) - 1) / 2
_KINDS = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
_BYTES_ALONE = ("F8_E4M3", "F8_E5M2", "F8_E8M0")


@dataclass(frozen=True)
class WeightGap:
    """σ = Σ|T−I| / (Σ|T|+Σ|I|) in [0, 1]: over all weights, and for each kind of module."""

    sigma: float
    modules: Mapping[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value:.3f}" for name, value in self.modules.items())
        return f"σ ≈ {self.sigma:.3f} ({parts})"


def weight_gap(instruct: Checkpoint, thinking: Checkpoint) -> WeightGap | None:
    """Estimate σ from 16 pieces of 16,384 weights for each kind of module; None where they are not both local.

    fp8 weights count with their scales. Tensors that one endpoint lacks are left out.
    """
    if instruct.folder is None or thinking.folder is None:
        return None
    kinds: dict[str, list[tuple[TensorView, TensorView]]] = defaultdict(list)
    for name, found in match(instruct, thinking).tensors.items():
        if all(view.floating and not view.absent for view in (found.instruct, found.thinking)):
            kinds[module_of(name)].append((found.instruct, found.thinking))
    gaps, differences, sizes = {}, 0.0, 0.0
    for kind, views in sorted(kinds.items()):
        difference, size = _gap((instruct.folder, thinking.folder), views)
        if not math.isfinite(difference + size) or size == 0.0:
            continue
        gaps[kind] = difference / size
        elements = sum(ours.elements for ours, _ in views)
        differences += difference * elements
        sizes += size * elements
    return WeightGap(differences / sizes, gaps) if gaps else None


def _gap(folders: tuple[Path, Path], views: list[tuple[TensorView, TensorView]]) -> tuple[float, float]:
    """Return the means of |T−I| and of |T|+|I| over a sample of these tensors."""
    import numpy as np

    difference = size = 0.0
    count = 0
    for i in range(_PIECES):
        pair = views[i * len(views) // _PIECES]
        elements = min(view.elements for view in pair)
        taken = min(elements, _ELEMENTS)
        # Multiples of the golden ratio spread the pieces evenly over tensors of any number.
        start = int((i * _GOLDEN % 1.0) * (elements - taken))
        a, b = (_values(folder, view, start, taken) for folder, view in zip(folders, pair, strict=True))
        if len(a) != len(b):  # rows that one endpoint lacks
            continue
        difference += float(np.abs(a - b).sum())
        size += float((np.abs(a) + np.abs(b)).sum())
        count += taken
    return difference / max(count, 1), size / max(count, 1)


def _values(folder: Path, view: TensorView, start: int, count: int) -> NDArray[np.float64]:
    import numpy as np

    found = [np.zeros(0)]
    for piece in view.parts(start, count):
        file, first, end = piece.bytes
        with (folder / file).open("rb") as stream:
            stream.seek(first)
            values = _numbers(stream.read(end - first), piece.info.dtype)
        found.append(values if piece.scaling is None else values * _scales(folder, piece, piece.scaling))
    return np.concatenate(found)


def _scales(folder: Path, piece: Piece, scaling: Scaling) -> NDArray[np.float64]:
    """Return the scale of each element of a piece."""
    import numpy as np

    with (folder / scaling.info.file).open("rb") as stream:
        stream.seek(scaling.info.start)
        scales = _numbers(stream.read(scaling.info.nbytes), scaling.info.dtype)
    if len(scales) == 1:
        return scales
    row, column = np.divmod(piece.first + np.arange(piece.count), scaling.columns)
    matrix = row // scaling.rows if scaling.stack > 1 else 0
    line = matrix * scaling.grid[0] + row % scaling.rows // scaling.block[0]
    chosen: NDArray[np.float64] = scales.reshape(-1, scaling.grid[1])[line, column // scaling.block[1]]
    return chosen


def relative_distance(instruct: Checkpoint, thinking: Checkpoint, names: Iterable[str]) -> float | None:
    """Return ‖T−I‖ / ‖I‖ over a sample of local weights, or None where they are not both local.

    Matrices only: norms' weights stay near their start even in unrelated models. 0.0 means
    that every sampled byte is equal.
    """
    if instruct.folder is None or thinking.folder is None:
        return None
    import numpy as np

    both = sorted(
        n for n in names if n in thinking.tensors and instruct.tensors[n].floating and thinking.tensors[n].floating
    )
    matrices = [n for n in both if len(instruct.tensors[n].shape) >= 2] or both
    step = max(1, len(matrices) // _TENSORS)
    difference = size = 0.0
    equal = True
    for name in matrices[::step][:_TENSORS]:
        a = _sample(instruct.folder, instruct.tensors[name])
        b = _sample(thinking.folder, thinking.tensors[name])
        count = min(len(a), len(b))
        equal = equal and bool(np.array_equal(a[:count], b[:count]))
        difference += float(np.square(a[:count] - b[:count]).sum())
        size += float(np.square(a[:count]).sum())
    if not matrices or not np.isfinite(difference + size):
        return None
    if equal:
        return 0.0
    return float((difference / size) ** 0.5) if size else None


def _sample(folder: Path, info: TensorInfo) -> NDArray[np.float64]:
    with (folder / info.file).open("rb") as file:
        file.seek(info.start)
        return _numbers(file.read(min(info.nbytes, _BYTES) // 8 * 8 or info.nbytes), info.dtype)


def _numbers(data: bytes, dtype: str) -> NDArray[np.float64]:
    import numpy as np

    if dtype in _BYTES_ALONE:
        return _fp8_table(dtype)[np.frombuffer(data, np.uint8)]
    found = np.frombuffer(data, _KINDS[dtype])
    if dtype == "BF16":
        found = (found.astype(np.uint32) << 16).view(np.float32)
    return found.astype(np.float64)


@cache
def _fp8_table(dtype: str) -> NDArray[np.float64]:
    """Return the value of each of the 256 bytes."""
    import numpy as np

    byte = np.arange(256)
    if dtype == "F8_E5M2":  # the upper half of fp16
        return (byte.astype(np.uint16) << 8).view(np.float16).astype(np.float64)
    if dtype == "F8_E8M0":
        return np.ldexp(1.0, byte - 127)
    sign, exponent, fraction = np.where(byte < 128, 1.0, -1.0), byte >> 3 & 15, byte & 7
    value = sign * np.where(exponent > 0, np.ldexp(1 + fraction / 8, exponent - 7), np.ldexp(fraction / 8, -6))
    value[[0x7F, 0xFF]] = np.nan
    return value
