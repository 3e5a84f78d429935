"""How a shard is cut: chunks of the file's bytes, and in each the blocks that are computed at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dami_merge.build.build_plan import TensorSource
from dami_merge.build.layout import ITEMSIZE, OutTensor, Shard
from dami_merge.build.reader import Span
from dami_merge.checkpoints.sides import Sides
from dami_merge.checkpoints.tensor_view import Piece

__all__ = ["BLOCK", "Block", "Chunk", "chunk_size", "cut"]

BLOCK = 1 << 19
"""Elements that are computed at once; four fp32 copies of them stay within a common L3 cache."""

_CHUNK = 4 << 20
_MEMORY = 96 << 20  # bytes for all chunks of all variants together


@dataclass(frozen=True)
class Block:
    """Elements of one tensor, at byte `position` of their chunk, and where each endpoint keeps them.

    `thinking` is None where only Instruct has them.
    """

    tensor: OutTensor
    source: TensorSource
    position: int
    instruct: Piece
    thinking: Piece | None

    @property
    def count(self) -> int:
        """Number of elements."""
        return self.instruct.count


@dataclass(frozen=True)
class Chunk:
    """A run of bytes of the file, and the blocks in it."""

    start: int
    length: int
    blocks: Sequence[Block]

    def spans(self) -> Sides[list[Span | None]]:
        """Return what each endpoint gives to each block of this chunk."""
        return Sides([_span(block.instruct) for block in self.blocks], [_span(block.thinking) for block in self.blocks])


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
            block = _block(tensor, sources[tensor.name], first, (start + size - offset) // width, offset - start)
            blocks.append(block)
            first += block.count
    while start < shard.size:
        yield Chunk(start, min(size, shard.size - start), blocks)
        start, blocks = start + size, []


def _block(tensor: OutTensor, source: TensorSource, first: int, room: int, position: int) -> Block:
    # A block ends where either endpoint's elements go on in another place.
    instruct, end = source.instruct.at(first)
    thinking, other = source.thinking.at(first)
    assert instruct is not None
    count = min(BLOCK, room, end - first, other - first)
    theirs = thinking.part(first, count) if thinking else None
    return Block(tensor, source, position, instruct.part(first, count), theirs)


def _span(piece: Piece | None) -> Span | None:
    if piece is None:
        return None
    file, start, end = piece.bytes
    return Span(file, start, end - start)
