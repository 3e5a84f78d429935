"""How a variant's weights lie on disk: shard files, tensor order, safetensors headers.

A variant keeps the Instruct endpoint's layout (its tensor names, order and shard files)
unless a shard size is asked for. Headers are written anew from the checked facts, so that
nothing odd in an endpoint's header is passed on.
"""

from __future__ import annotations

import json
import math
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dami_merge.checkpoints.checkpoint import Checkpoint, TensorInfo
from dami_router.errors import CheckpointError

__all__ = ["INDEX", "ITEMSIZE", "Kind", "OutTensor", "Shard", "index_text", "plan_shards"]

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"

ITEMSIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes an element takes, by safetensors dtype."""


@dataclass(frozen=True)
class Kind:
    """The dtype and shape that a variant stores a tensor in."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class OutTensor:
    """One tensor of a shard; `start` and `end` are byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Shard:
    """One weight file of a variant: the header's bytes, then the tensors without gaps."""

    file: str
    header: bytes
    tensors: tuple[OutTensor, ...]

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        return self.tensors[-1].end if self.tensors else len(self.header)


def plan_shards(
    endpoint: Checkpoint, kinds: Mapping[str, Kind], max_shard_size: int | None = None
) -> tuple[Shard, ...]:
    """Lay out a variant whose tensors have these dtypes and shapes.

    Without `max_shard_size` (bytes) the files are the endpoint's own, and a tensor that it does not
    store goes to the end of the last one; with it, tensors fill files of at most that size in the
    endpoint's order (a larger tensor gets a file of its own).
    """
    check_contiguous(endpoint)
    files: dict[str, list[str]] = defaultdict(list)
    stored = sorted((name for name in kinds if name in endpoint.tensors), key=lambda n: _place(endpoint.tensors[n]))
    for name in stored:
        files[endpoint.tensors[name].file].append(name)
    last = endpoint.tensors[stored[-1]].file if stored else _SINGLE
    files[last] += [name for name in kinds if name not in endpoint.tensors]
    groups: list[list[str]] = list(files.values())
    names = list(files)
    if max_shard_size is not None:
        ordered = [name for group in groups for name in group]
        groups = _filled(ordered, {n: kinds[n].nbytes for n in ordered}, max_shard_size)
        names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    if len(names) == 1:
        names = [_SINGLE]
    return tuple(_shard(file, group, kinds) for file, group in zip(names, groups, strict=True))


def check_contiguous(endpoint: Checkpoint) -> None:
    """Refuse files whose tensors overlap or leave gaps: their headers do not tell the truth."""
    ends: dict[str, tuple[int, str]] = {}
    for name, info in sorted(endpoint.tensors.items(), key=lambda item: _place(item[1])):
        end, before = ends.get(info.file, (info.start, ""))
        if info.start != end:
            what = "overlaps" if info.start < end else "leaves a gap after"
            raise CheckpointError(
                f"{endpoint.ref}: {info.file}: tensor `{name}` {what} `{before}`: the header is wrong",
                hint="download or copy the file again",
            )
        ends[info.file] = (info.end, name)


def index_text(shards: Sequence[Shard]) -> str:
    """Return the text of model.safetensors.index.json."""
    weights = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    total = sum(shard.size - len(shard.header) for shard in shards)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weights.items()))}, indent=2) + "\n"


def _place(info: TensorInfo) -> tuple[str, int, int]:
    return info.file, info.start, info.end


def _filled(names: Iterable[str], sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    groups: list[list[str]] = []
    room = 0
    for name in names:
        if not groups or sizes[name] > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= sizes[name]
    return groups


def _shard(file: str, names: Sequence[str], kinds: Mapping[str, Kind]) -> Shard:
    names = _aligned(names, kinds)
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        end = offset + kinds[name].nbytes
        entries[name] = {"dtype": kinds[name].dtype, "shape": list(kinds[name].shape), "data_offsets": [offset, end]}
        offset = end
    body = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    body += b" " * (-len(body) % 8)
    header = struct.pack("<Q", len(body)) + body
    tensors, offset = [], len(header)
    for name in names:
        end = offset + kinds[name].nbytes
        tensors.append(OutTensor(name, kinds[name].dtype, kinds[name].shape, offset, end))
        offset = end
    return Shard(file, header, tuple(tensors))


def _aligned(names: Sequence[str], kinds: Mapping[str, Kind]) -> Sequence[str]:
    # A reader views the file's bytes as numbers, so each tensor must begin at a multiple of its item size.
    offset = 0
    for name in names:
        if offset % ITEMSIZE[kinds[name].dtype]:
            return sorted(names, key=lambda n: -ITEMSIZE[kinds[n].dtype])
        offset += kinds[name].nbytes
    return names
