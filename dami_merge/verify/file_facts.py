"""What one weight file holds: its hash, and every number finite, in one reading."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dami_merge.checkpoints.checkpoint import TensorInfo
from dami_merge.interpolation.formula import TORCH_DTYPES

__all__ = ["FileFacts", "NotFinite", "read_facts"]

_BLOCK = 1 << 21  # bytes; a multiple of every item size


@dataclass(frozen=True)
class NotFinite:
    """A NaN or an infinity: the first of a tensor, and how many there are."""

    tensor: str
    index: int
    value: float
    count: int


@dataclass(frozen=True)
class FileFacts:
    """sha256 of a file and the numbers in it that are not finite."""

    sha256: str
    not_finite: tuple[NotFinite, ...]


def read_facts(path: Path, tensors: Mapping[str, TensorInfo], progress: Callable[[int], object]) -> FileFacts:
    """Read a safetensors file once; `tensors` are those that its header lists (none: the hash alone)."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK))
    found = []
    position = 0
    with path.open("rb", buffering=0) as file:

        def take(upto: int) -> memoryview:
            nonlocal position
            view = buffer[: min(_BLOCK, upto - position)]
            count = file.readinto(view) or 0
            digest.update(view[:count])
            position += count
            progress(count)
            return view[:count]

        for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
            while position < info.start and take(info.start):
                pass
            if position == info.start and info.dtype in TORCH_DTYPES:
                found += _scan(name, info, take)
        size = os.fstat(file.fileno()).st_size
        while position < size and take(size):
            pass
    return FileFacts(digest.hexdigest(), tuple(found))


def _scan(name: str, info: TensorInfo, take: Callable[[int], memoryview]) -> list[NotFinite]:
    dtype = TORCH_DTYPES[info.dtype]
    size, done, count = dtype.itemsize, 0, 0
    first: tuple[int, float] | None = None
    pending = b""
    while done < info.nbytes:
        view = take(info.end)
        if not len(view):
            break
        done += len(view)
        data = pending + view if pending else view
        whole = len(data) // size * size
        values = torch.frombuffer(data, dtype=dtype, count=whole // size) if whole else torch.empty(0, dtype=dtype)
        pending = bytes(data[whole:])
        # The extremes of a block are finite only if all of it is: NaN counts as an extreme.
        if len(values) and not all(bool(torch.isfinite(end)) for end in values.aminmax()):
            bad = ~torch.isfinite(values)
            at = int(bad.nonzero()[0])
            first = first or ((done - len(data)) // size + at, float(values[at]))
            count += int(bad.sum())
    return [NotFinite(name, *first, count)] if first else []
