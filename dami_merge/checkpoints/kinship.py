"""How far apart two endpoints lie, from a sample of their weights.

Reads at most about a megabyte from each endpoint's files, so that `dami check` can tell
identical endpoints and endpoints without a common ancestor before any real work.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dami_merge.checkpoints.checkpoint import Checkpoint, TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["relative_distance"]

_TENSORS = 16
_BYTES = 1 << 16


def relative_distance(instruct: Checkpoint, thinking: Checkpoint, names: Iterable[str]) -> float | None:
    """Return ‖T−I‖ / ‖I‖ over a sample of local weights, or None where they are not both local.

    Matrices only: norms' weights stay near their start even in unrelated models. 0.0 means
    that every sampled byte is equal.
    """
    if instruct.folder is None or thinking.folder is None:
        return None
    import numpy as np

    both = sorted(n for n in names if n in thinking.tensors and instruct.tensors[n].floating)
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
    import numpy as np

    with (folder / info.file).open("rb") as file:
        file.seek(info.start)
        data = file.read(min(info.nbytes, _BYTES) // 8 * 8 or info.nbytes)
    if info.dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    kind = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[info.dtype]
    return np.frombuffer(data, kind).astype(np.float64)
