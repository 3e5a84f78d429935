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

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_router.errors import CheckpointError

__all__ = ["INDEX", "ITEMSIZE", "OutTensor", "Shard", "index_text", "plan_shards"]

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"

ITEMSIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes an element takes, by safetensors dtype."""


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
    endpoint: Checkpoint, dtypes: Mapping[str, str], max_shard_size: int | None = None
) -> tuple[Shard, ...]:
    """Lay out a variant with the endpoint's tensors in the given dtypes.

    Without `max_shard_size` (bytes) the files are the endpoint's own; with it, tensors fill
    files of at most that size in the endpoint's order (a larger tensor gets a file of its own).
    """
    check_contiguous(endpoint)
    files: dict[str, list[str]] = defaultdict(list)
    for name, info in sorted(endpoint.tensors.items(), key=lambda item: (item[1].file, item[1].start, item[1].end)):
        files[info.file].append(name)
    groups: list[list[str]] = list(files.values())
    names = list(files)
    if max_shard_size is not None:
        ordered = [name for group in groups for name in group]
        groups = _filled(ordered, {n: _nbytes(endpoint, n, dtypes) for n in ordered}, max_shard_size)
        names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    if len(names) == 1:
        names = [_SINGLE]
    return tuple(_shard(file, group, endpoint, dtypes) for file, group in zip(names, groups, strict=True))


def check_contiguous(endpoint: Checkpoint) -> None:
    """Refuse files whose tensors overlap or leave gaps: their headers do not tell the truth."""
    ends: dict[str, tuple[int, str]] = {}
    for name, info in sorted(endpoint.tensors.items(), key=lambda item: (item[1].file, item[1].start, item[1].end)):
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


def _nbytes(endpoint: Checkpoint, name: str, dtypes: Mapping[str, str]) -> int:
    return math.prod(endpoint.tensors[name].shape) * ITEMSIZE[dtypes[name]]


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


def _shard(file: str, names: Sequence[str], endpoint: Checkpoint, dtypes: Mapping[str, str]) -> Shard:
    names = _aligned(names, endpoint, dtypes)
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        end = offset + _nbytes(endpoint, name, dtypes)
        entries[name] = {
            "dtype": dtypes[name], "shape": list(endpoint.tensors[name].shape), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    body = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    body += b" " * (-len(body) % 8)
    header = struct.pack("<Q", len(body)) + body
    tensors, offset = [], len(header)
    for name in names:
        end = offset + _nbytes(endpoint, name, dtypes)
        tensors.append(OutTensor(name, dtypes[name], endpoint.tensors[name].shape, offset, end))
        offset = end
    return Shard(file, header, tuple(tensors))


def _aligned(names: Sequence[str], endpoint: Checkpoint, dtypes: Mapping[str, str]) -> Sequence[str]:
    # A reader views the file's bytes as numbers, so each tensor must begin at a multiple of its item size.
    offset = 0
    for name in names:
        if offset % ITEMSIZE[dtypes[name]]:
            return sorted(names, key=lambda n: -ITEMSIZE[dtypes[n]])
        offset += _nbytes(endpoint, name, dtypes)
    return names
