"""A tensor as an endpoint gives it, wherever its elements lie in the endpoint's files.

Most tensors are one run of bytes. Others are put together: experts that one side stores one by
one and the other in one tensor, or a matrix whose padding rows the other side lacks.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dami_merge.checkpoints.checkpoint import TensorInfo

__all__ = ["FLOATING", "Piece", "Scaling", "TensorView", "plain"]

FLOATING = ("BF16", "F16", "F32", "F64")
"""Dtypes that can be interpolated as they are."""


@dataclass(frozen=True)
class Scaling:
    """The scales of an fp8 tensor: `stack` matrices of `rows` × `columns`, a scale for each `block` of them.

    `info` holds `grid` scales a matrix, matrix after matrix; with a `stack` of 1 they are every matrix's.
    """

    info: TensorInfo
    rows: int
    columns: int
    block: tuple[int, int]
    grid: tuple[int, int]
    stack: int


@dataclass(frozen=True)
class Piece:
    """`count` elements from `start` on in a tensor; they lie in `info` from element `first` on.

    With a `scaling`, a value is the stored number times its scale.
    """

    start: int
    count: int
    info: TensorInfo
    first: int = 0
    scaling: Scaling | None = None

    @property
    def end(self) -> int:
        """The first element after the piece."""
        return self.start + self.count

    @property
    def width(self) -> int:
        """Bytes of an element on disk."""
        return self.info.nbytes // max(math.prod(self.info.shape), 1)

    @property
    def bytes(self) -> tuple[str, int, int]:
        """Where the piece lies: file, first byte, byte after the last."""
        begin = self.info.start + self.first * self.width
        return self.info.file, begin, begin + self.count * self.width

    def part(self, start: int, count: int) -> Piece:
        """Return the piece's elements from `start` of the tensor on."""
        return replace(self, start=start, count=count, first=self.first + start - self.start)

    def moved(self, by: int) -> Piece:
        """Return the same elements, `by` elements further in the tensor."""
        return replace(self, start=self.start + by)


@dataclass(frozen=True)
class TensorView:
    """A tensor's shape, its dtype, and the pieces that its elements lie in, in order.

    Elements that no piece holds are not there on this side (padding rows, a part of the model).
    """

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[Piece, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def floating(self) -> bool:
        """Whether it can be interpolated."""
        return self.dtype in FLOATING

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        """Every stored tensor that is read for this one, scales included."""
        scales = (piece.scaling.info for piece in self.pieces if piece.scaling)
        return tuple(dict.fromkeys([*(piece.info for piece in self.pieces), *scales]))

    @property
    def files(self) -> set[str]:
        """Every file that is read for this tensor."""
        return {info.file for info in self.infos}

    def at(self, element: int) -> tuple[Piece | None, int]:
        """Return the piece that holds an element (None where it is not there), and the first element after that run."""
        index = bisect_right(self.pieces, element, key=lambda piece: piece.start) - 1
        if index >= 0 and element < self.pieces[index].end:
            return self.pieces[index], self.pieces[index].end
        return None, self.pieces[index + 1].start if index + 1 < len(self.pieces) else self.elements

    def parts(self, first: int, count: int) -> Iterator[Piece]:
        """Yield the pieces of `count` elements from `first` on, cut at both ends."""
        while count > 0:
            piece, end = self.at(first)
            taken = min(count, end - first)
            if piece is not None:
                yield piece.part(first, taken)
            first, count = first + taken, count - taken

    @property
    def absent(self) -> bool:
        """Whether this side has none of the elements."""
        return not self.pieces and self.elements > 0

    def with_no_pieces(self) -> TensorView:
        """Return the view of a tensor that is not there."""
        return TensorView(self.shape, self.dtype, ())

    def with_rows(self, rows: int) -> TensorView:
        """Return the tensor with another number of rows: cut at the end, or with rows that are not there."""
        row = self.elements // max(self.shape[0], 1)
        count = min(rows, self.shape[0]) * row
        return TensorView((rows, *self.shape[1:]), self.dtype, tuple(self.parts(0, count)))


def plain(info: TensorInfo) -> TensorView:
    """Return the view of a tensor that is stored as it is."""
    count = math.prod(info.shape)
    return TensorView(info.shape, info.dtype, (Piece(0, count, info),) if count else ())
