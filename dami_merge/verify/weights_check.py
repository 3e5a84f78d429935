"""A variant's tensors against the endpoints: λ read back from a sample, or every bit computed again."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

import torch

from dami_merge.build.build_plan import TensorSource, VariantPlan
from dami_merge.build.layout import ITEMSIZE
from dami_merge.checkpoints.checkpoint import Checkpoint, TensorInfo
from dami_merge.checkpoints.sides import Sides
from dami_merge.checkpoints.stored_values import StoredValues
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
        self._stored = variant.tensors
        self._sources = sources
        self._kernel = BlockInterpolator(_BLOCK)
        self._stack = ExitStack()
        self._variant = self._stack.enter_context(_Files(variant))
        self._ends = Sides(*(self._stack.enter_context(_Files(side)) for side in (instruct, thinking)))

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
        info = self._stored[name]
        total = Evidence()
        assert source.compute is not None
        compute = TORCH_DTYPES[source.compute]
        elements = info.nbytes // ITEMSIZE[info.dtype]
        step = max(_RUN, elements // _SAMPLES)
        for start in range(0, elements, step):
            first, count, shared = _run(source, start, min(_RUN, elements - start))
            if shared:
                v = self._variant.elements(info, first, count)
                a = self._ends.instruct.values(source.instruct, first, count, compute)
                b = self._ends.thinking.values(source.thinking, first, count, compute)
                total.add(gather(a, b, v, compute, reach=reach))
        return total

    def _difference(
        self, name: str, source: TensorSource, lambda_: float, progress: Callable[[int], object]
    ) -> Difference | None:
        info = self._stored[name]
        size = ITEMSIZE[info.dtype]
        first_bad: tuple[int, float, float] | None = None
        total = 0
        first, elements = 0, info.nbytes // size
        while first < elements:
            first, count, shared = _run(source, first, min(_BLOCK, elements - first))
            stored = self._variant.elements(info, first, count)
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
            return self._ends.instruct.elements(piece.info, piece.first, count)
        compute = TORCH_DTYPES[source.compute]
        a = self._ends.instruct.values(source.instruct, first, count, compute)
        b = a if lambda_ is None else self._ends.thinking.values(source.thinking, first, count, compute)
        out = torch.empty(count, dtype=TORCH_DTYPES[dtype])
        self._kernel.write(a, b, [lambda_ or 0.0], [out])
        return out


class _Files:
    """Reads elements from a checkpoint's files into memory that it keeps.

    What it returns is good until it reads again: fresh memory for every block costs more than reading it.
    """

    def __init__(self, side: Checkpoint) -> None:
        assert side.folder is not None
        self._folder = side.folder
        self._values = StoredValues(side.folder)
        self._buffer = bytearray(_BLOCK * max(ITEMSIZE.values()))
        self._handles: dict[str, int] = {}

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles.values():
            os.close(handle)

    def elements(self, info: TensorInfo, first: int, count: int) -> torch.Tensor:
        """Return stored elements of a tensor as they are."""
        size = ITEMSIZE[info.dtype]
        data = self._read(info.file, info.start + first * size, count * size)
        return torch.frombuffer(data, dtype=TORCH_DTYPES.get(info.dtype, torch.uint8))

    def values(self, view: TensorView, first: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return elements that lie in one piece as numbers of a dtype."""
        (piece,) = view.parts(first, count)
        file, start, end = piece.bytes
        return self._values.of(piece, self._read(file, start, end - start), dtype)

    def _read(self, file: str, start: int, count: int) -> memoryview:
        if file not in self._handles:
            self._handles[file] = os.open(self._folder / file, os.O_RDONLY)
        data = memoryview(self._buffer)[:count]
        if os.preadv(self._handles[file], [data], start) < len(data):
            raise CheckpointError(f"{self._folder / file}: ends too early; it shrank while it was read")
        return data


def _run(source: TensorSource, first: int, count: int) -> tuple[int, int, bool]:
    """Return the run of at most `count` elements from `first` on that lies in one piece on both sides.

    The last value says whether Thinking has it.
    """
    _, end = source.instruct.at(first)
    thinking, other = source.thinking.at(first)
    return first, min(count, end - first, other - first), thinking is not None
