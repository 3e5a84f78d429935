"""How far apart two endpoints lie, from a bounded sample of their weights.

`relative_distance` reads at most a megabyte of each endpoint and `weight_gap` at most three, so that `dami check`
can recognise identical and unrelated endpoints, and say how far apart related ones are, before any real work.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dami_merge.checkpoints.checkpoint import Checkpoint, TensorInfo
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


@dataclass(frozen=True)
class WeightGap:
    """σ = Σ|T−I| / (Σ|T|+Σ|I|) in [0, 1]: over all weights, and for each kind of module."""

    sigma: float
    modules: Mapping[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value:.3f}" for name, value in self.modules.items())
        return f"σ ≈ {self.sigma:.3f} ({parts})"


def weight_gap(instruct: Checkpoint, thinking: Checkpoint) -> WeightGap | None:
    """Estimate σ from 16 pieces of 16,384 weights for each kind of module; None where they are not both local."""
    if instruct.folder is None or thinking.folder is None:
        return None
    kinds: dict[str, list[str]] = defaultdict(list)
    for name, info in instruct.tensors.items():
        if info.dtype in _KINDS and name in thinking.tensors and thinking.tensors[name].dtype in _KINDS:
            kinds[module_of(name)].append(name)
    gaps, differences, sizes = {}, 0.0, 0.0
    for kind, names in sorted(kinds.items()):
        difference, size = _gap(instruct, thinking, names)
        if not math.isfinite(difference + size) or size == 0.0:
            continue
        gaps[kind] = difference / size
        elements = sum(math.prod(instruct.tensors[name].shape) for name in names)
        differences += difference * elements
        sizes += size * elements
    return WeightGap(differences / sizes, gaps) if gaps else None


def _gap(instruct: Checkpoint, thinking: Checkpoint, names: list[str]) -> tuple[float, float]:
    """Return the means of |T−I| and of |T|+|I| over a sample of these tensors."""
    import numpy as np

    assert instruct.folder is not None
    assert thinking.folder is not None
    difference = size = 0.0
    count = 0
    for i in range(_PIECES):
        name = names[i * len(names) // _PIECES]
        ours, theirs = instruct.tensors[name], thinking.tensors[name]
        elements = min(math.prod(ours.shape), math.prod(theirs.shape))
        taken = min(elements, _ELEMENTS)
        # Multiples of the golden ratio spread the pieces evenly over tensors of any number.
        start = int((i * _GOLDEN % 1.0) * (elements - taken))
        a, b = (
            _piece(side.folder, info, start, taken)  # type: ignore[arg-type]
            for side, info in ((instruct, ours), (thinking, theirs))
        )
        difference += float(np.abs(a - b).sum())
        size += float((np.abs(a) + np.abs(b)).sum())
        count += taken
    return difference / max(count, 1), size / max(count, 1)


def _piece(folder: Path, info: TensorInfo, start: int, count: int) -> NDArray[np.float64]:
    import numpy as np

    width = np.dtype(_KINDS[info.dtype]).itemsize
    with (folder / info.file).open("rb") as file:
        file.seek(info.start + start * width)
        return _numbers(file.read(count * width), info.dtype)


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

    found = np.frombuffer(data, _KINDS[dtype])
    if dtype == "BF16":
        found = (found.astype(np.uint32) << 16).view(np.float32)
    return found.astype(np.float64)
