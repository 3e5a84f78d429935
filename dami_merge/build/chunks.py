"""How a shard is cut: chunks of the file's bytes, and in each the blocks that are computed at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dami_merge.build.build_plan import TensorSource
from dami_merge.build.layout import ITEMSIZE, OutTensor, Shard
from dami_merge.build.reader import Span

__all__ = ["BLOCK", "Block", "Chunk", "chunk_size", "cut"]

BLOCK = 1 << 19
"""Elements that are computed at once; four fp32 copies of them stay within a common L3 cache."""

_CHUNK = 4 << 20
_MEMORY = 96 << 20  # bytes for all chunks of all variants together


@dataclass(frozen=True)
class Block:
    """Elements of one tensor that stand at `position` of their chunk."""

    tensor: OutTensor
    source: TensorSource
    first: int
    count: int
    position: int

    def span(self, thinking: bool) -> Span:
        """Return where an endpoint keeps these elements."""
        info = self.source.thinking if thinking else self.source.instruct
        size = ITEMSIZE[info.dtype]
        return Span(info.file, info.start + self.first * size, self.count * size)


@dataclass(frozen=True)
class Chunk:
    """A run of bytes of the file, and the blocks in it."""

    start: int
    length: int
    blocks: Sequence[Block]

    def spans(self, thinking: bool) -> list[Span]:
        """Return what an endpoint gives to this chunk."""
        return [block.span(thinking) for block in self.blocks]


def chunk_size(buffers: int) -> int:
    """Return the bytes of a chunk, so that as many buffers of that size stay within a bound."""
    size = _CHUNK
    while size > 1 << 16 and buffers * size > _MEMORY:
        size //= 2
    return size


def cut(shard: Shard, sources: Mapping[str, TensorSource], size: int) -> Iterator[Chunk]:
    """Yield the shard's chunks of `size` bytes in order, the last one as long as it is."""
    blocks: list[Block] = []
    start = 0
    for tensor in shard.tensors:
        width = ITEMSIZE[tensor.dtype]
        first = 0
        while first < tensor.elements:
            offset = tensor.start + first * width
            while offset >= start + size:
                yield Chunk(start, size, blocks)
                start, blocks = start + size, []
            count = min(BLOCK, tensor.elements - first, (start + size - offset) // width)
            blocks.append(Block(tensor, sources[tensor.name], first, count, offset - start))
            first += count
    while start < shard.size:
        yield Chunk(start, min(size, shard.size - start), blocks)
        start, blocks = start + size, []
