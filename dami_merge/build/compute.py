"""Filling a chunk of every variant from the endpoints' bytes, in several threads.

T−I is computed once for a block and used for every λ.
"""

from __future__ import annotations

import mmap
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from dami_merge.build.chunks import BLOCK, Block, Chunk
from dami_merge.build.reader import Views
from dami_merge.checkpoints.sides import Sides
from dami_merge.checkpoints.stored_values import StoredValues
from dami_merge.interpolation.formula import TORCH_DTYPES, BlockInterpolator

__all__ = ["LANES", "Lanes", "Work"]

LANES = 2
"""Chunks that are computed at the same time: one alone leaves the other processors idle while it waits for reads."""


@dataclass(frozen=True)
class Work:
    """A chunk to compute: both endpoints' bytes of it, and for each variant its λ by tensor and a buffer to fill."""

    chunk: Chunk
    data: Sides[Views]
    lambdas: Sequence[Mapping[str, float]]
    buffers: Sequence[mmap.mmap]


class Lanes:
    """Threads that compute chunks, each with memory of its own; torch's own threads stay out of it.

    Blocks are small and other threads read, hash and write: torch's threads would only wait.
    """

    def __init__(self, folders: Sides[Path], device: str) -> None:
        self._values = Sides(StoredValues(folders.instruct), StoredValues(folders.thinking))
        self._device = device
        self._kernels: queue.SimpleQueue[BlockInterpolator] = queue.SimpleQueue()
        for _ in range(LANES):
            self._kernels.put(BlockInterpolator(BLOCK, device))
        self._before = torch.get_num_threads()

    def __enter__(self) -> Lanes:
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(LANES, thread_name_prefix="compute")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._before)

    def start(self, work: Work) -> Future[None]:
        """Start computing a chunk; its bytes and its buffers are in use until that is done."""
        return self._pool.submit(self._fill, work)

    def _fill(self, work: Work) -> None:
        kernel = self._kernels.get()
        try:
            for block, instruct, thinking in zip(work.chunk.blocks, *work.data, strict=True):
                if block.source.compute is None:
                    _copy(block, instruct, work.buffers)
                else:
                    self._interpolate(kernel, block, Sides(instruct, thinking), work)
        finally:
            self._kernels.put(kernel)

    def _interpolate(self, kernel: BlockInterpolator, block: Block, data: Sides[memoryview], work: Work) -> None:
        name, dtype, source = block.tensor.name, TORCH_DTYPES[block.tensor.dtype], block.source
        assert source.compute is not None
        compute = TORCH_DTYPES[source.compute]
        a = b = self._values.instruct.of(block.instruct, data.instruct, compute, self._device)
        values = [lambdas[name] for lambdas in work.lambdas]
        if block.thinking is not None:
            b = self._values.thinking.of(block.thinking, data.thinking, compute, self._device)
        else:
            values = [0.0] * len(values)  # what Thinking lacks is Instruct's at every λ
        out = [torch.frombuffer(m, dtype=dtype, count=block.count, offset=block.position) for m in work.buffers]
        results = out if self._device == "cpu" else [torch.empty_like(o, device=self._device) for o in out]
        kernel.write(a, b, values, results)
        for target, result in zip(out, results, strict=True):
            if target is not result:
                target.copy_(result)


def _copy(block: Block, data: memoryview, buffers: Sequence[mmap.mmap]) -> None:
    for buffer in buffers:
        buffer[block.position : block.position + len(data)] = data
