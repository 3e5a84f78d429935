"""A variant's tensors against the endpoints: λ read back from a sample, or every bit computed again."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from dami_merge.build.build_plan import TensorSource, VariantPlan
from dami_merge.build.layout import ITEMSIZE
from dami_merge.build.stored_values import StoredValues
from dami_merge.checkpoints.checkpoint import Checkpoint, TensorInfo
from dami_merge.checkpoints.tensor_view import TensorView
from dami_merge.interpolation.depth import Anatomy
from dami_merge.interpolation.formula import TORCH_DTYPES, BlockInterpolator
from dami_merge.verify.recovery import Evidence, Recovered, gather
from dami_router.errors import CheckpointError

__all__ = ["Difference", "LayerLambda", "Weights"]

_BLOCK = 1 << 19  # elements
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SAMPLES = 4  # runs of a tensor that are sampled
_RUN = 1 << 14  # elements of a run


@dataclass(frozen=True)
class Difference:
    """The first element of a tensor that is not what the endpoints give: its index and byte in the file."""

    tensor: str
    index: int
    byte: int
    found: float
    expected: float
    count: int


@dataclass(frozen=True)
class LayerLambda:
    """λ of the tensors of one layer that share one expected λ; `recovered` is None where nothing tells."""

    where: str
    expected: float
    recovered: Recovered | None


class Weights:
    """Reads one variant beside its two endpoints."""

    def __init__(
        self, variant: Checkpoint, instruct: Checkpoint, thinking: Checkpoint, sources: Mapping[str, TensorSource]
    ) -> None:
        self._sides = (variant, instruct, thinking)
        self._sources = sources
        assert instruct.folder is not None
        assert thinking.folder is not None
        self._values = StoredValues(instruct.folder), StoredValues(thinking.folder)
        self._kernel = BlockInterpolator(_BLOCK)
        self._handles: dict[Path, int] = {}
        # One for each side and kept: fresh memory for every block costs the system more than reading it.
        self._buffers = [bytearray(_BLOCK * max(ITEMSIZE.values())) for _ in self._sides]
        self._stack = ExitStack()

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def layers(self, plan: VariantPlan, anatomy: Anatomy) -> list[LayerLambda]:
        """Recover λ for each layer (and each λ within it) from samples of its tensors."""
        sums: dict[tuple[str, int, float], Evidence] = defaultdict(Evidence)
        for name, source in self._sources.items():
            if source.compute is not None:
                lambda_ = plan.tensors[name]
                place = anatomy.place(name)
                order = place.index if place.index is not None else -1 if place.x == 0.0 else place.layers
                where = anatomy.stack_of(name) if place.index is not None else name
                sums[where, order, lambda_].add(self._sample(name, source, max(1.0, abs(lambda_))))
        ordered = sorted(sums.items(), key=lambda item: (item[0][1], item[0][0], item[0][2]))
        return [
            LayerLambda(f"{where}.{order}" if where not in self._sources else where, expected, evidence.recovered())
            for (where, order, expected), evidence in ordered
        ]

    def differences(
        self, plan: VariantPlan, names: list[str], progress: Callable[[int], object]
    ) -> Iterator[Difference]:
        """Compute tensors again from the endpoints and yield the first difference of each that has one."""
        for name in names:
            if found := self._difference(name, self._sources[name], plan.tensors[name], progress):
                yield found

    def _sample(self, name: str, source: TensorSource, reach: float) -> Evidence:
        info = self._sides[0].tensors[name]
        total = Evidence()
        assert source.compute is not None
        compute = TORCH_DTYPES[source.compute]
        elements = info.nbytes // ITEMSIZE[info.dtype]
        step = max(_RUN, elements // _SAMPLES)
        for start in range(0, elements, step):
            first, count, shared = _run(source, start, min(_RUN, elements - start))
            if shared:
                v = self._stored(info, first, count)
                a, b = (self._end(end, view, first, count, compute) for end, view in enumerate(source.views))
                total.add(gather(a, b, v, compute, reach=reach))
        return total

    def _difference(
        self, name: str, source: TensorSource, lambda_: float, progress: Callable[[int], object]
    ) -> Difference | None:
        info = self._sides[0].tensors[name]
        size = ITEMSIZE[info.dtype]
        first_bad: tuple[int, float, float] | None = None
        total = 0
        first, elements = 0, info.nbytes // size
        while first < elements:
            first, count, shared = _run(source, first, min(_BLOCK, elements - first))
            stored = self._stored(info, first, count)
            expected = self._expected(source, lambda_ if shared else None, info.dtype, first, count)
            progress(count * size)
            bits, right = stored.view(_BITS[size]), expected.view(_BITS[size])
            if not torch.equal(bits, right):
                different = bits != right
                at = int(different.nonzero()[0])
                total += int(different.sum())
                first_bad = first_bad or (first + at, float(stored[at]), float(expected[at]))
            first += count
        if first_bad is None:
            return None
        index, found, wanted = first_bad
        return Difference(name, index, info.start + index * size, found, wanted, total)

    def _expected(
        self, source: TensorSource, lambda_: float | None, dtype: str, first: int, count: int
    ) -> torch.Tensor:
        """Return what the endpoints give at λ; without λ, what Instruct alone gives."""
        if source.compute is None:
            (piece,) = source.instruct.parts(first, count)
            return self._read(1, piece.info, piece.first, count)
        compute = TORCH_DTYPES[source.compute]
        a = self._end(0, source.instruct, first, count, compute)
        b = a if lambda_ is None else self._end(1, source.thinking, first, count, compute)
        out = torch.empty(count, dtype=TORCH_DTYPES[dtype])
        self._kernel.write(a, b, [lambda_ or 0.0], [out])
        return out

    def _stored(self, info: TensorInfo, first: int, count: int) -> torch.Tensor:
        """Return elements of the variant; they are good until it is read again."""
        return self._read(0, info, first, count)

    def _end(self, end: int, view: TensorView, first: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return elements of an endpoint that lie in one piece, as `dtype`; they are good until it is read again."""
        (piece,) = view.parts(first, count)
        data = self._bytes(end + 1, piece.info.file, piece.bytes[1], piece.bytes[2] - piece.bytes[1])
        return self._values[end].of(piece, data, dtype)

    def _read(self, side: int, info: TensorInfo, first: int, count: int) -> torch.Tensor:
        size = ITEMSIZE[info.dtype]
        data = self._bytes(side, info.file, info.start + first * size, count * size)
        return torch.frombuffer(data, dtype=TORCH_DTYPES.get(info.dtype, torch.uint8))

    def _bytes(self, side: int, file: str, start: int, count: int) -> memoryview:
        folder = self._sides[side].folder
        assert folder is not None
        path = folder / file
        if path not in self._handles:
            self._handles[path] = os.open(path, os.O_RDONLY)
            self._stack.callback(os.close, self._handles[path])
        data = memoryview(self._buffers[side])[:count]
        if os.preadv(self._handles[path], [data], start) < len(data):
            raise CheckpointError(f"{path}: ends too early; it shrank while it was read")
        return data


def _run(source: TensorSource, first: int, count: int) -> tuple[int, int, bool]:
    """Return the run of at most `count` elements from `first` on that lies in one piece on both sides.

    The last value says whether Thinking has it.
    """
    _, end = source.instruct.at(first)
    thinking, other = source.thinking.at(first)
    return first, min(count, end - first, other - first), thinking is not None
