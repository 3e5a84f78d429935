"""Filling a chunk of every variant from the endpoints' bytes, in several threads.

T−I is computed once for a block and used for every λ.
"""

from __future__ import annotations

import mmap
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch

from dami_merge.build.chunks import BLOCK, Block, Chunk
from dami_merge.build.layout import ITEMSIZE
from dami_merge.build.reader import Views
from dami_merge.interpolation import TORCH_DTYPES, BlockInterpolator

__all__ = ["LANES", "Lanes"]

LANES = 2
"""Chunks that are computed at the same time: one alone leaves the other processors idle while it waits for reads."""


class Lanes:
    """Threads that compute chunks, each with memory of its own; torch's own threads stay out of it.

    Blocks are small and other threads read, hash and write: torch's threads would only wait.
    """

    def __init__(self, device: str) -> None:
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

    def fill(
        self,
        chunk: Chunk,
        data: tuple[Views, Views],
        lambdas: Sequence[Mapping[str, float]],
        buffers: Sequence[mmap.mmap],
    ) -> Future[None]:
        """Start computing a chunk into one buffer for each of `lambdas`, which give λ by tensor."""
        return self._pool.submit(self._fill, chunk, data, lambdas, buffers)

    def _fill(
        self,
        chunk: Chunk,
        data: tuple[Views, Views],
        lambdas: Sequence[Mapping[str, float]],
        buffers: Sequence[mmap.mmap],
    ) -> None:
        kernel = self._kernels.get()
        try:
            for block, instruct, thinking in zip(chunk.blocks, *data, strict=True):
                self._compute(kernel, block, instruct, thinking, lambdas, buffers)
        finally:
            self._kernels.put(kernel)

    def _compute(
        self,
        kernel: BlockInterpolator,
        block: Block,
        instruct: memoryview,
        thinking: memoryview,
        lambdas: Sequence[Mapping[str, float]],
        buffers: Sequence[mmap.mmap],
    ) -> None:
        size = block.count * ITEMSIZE[block.tensor.dtype]
        compute = block.source.compute
        if compute is None:
            for buffer in buffers:
                buffer[block.position : block.position + size] = instruct
            return
        dtype = TORCH_DTYPES[block.tensor.dtype]
        out = [torch.frombuffer(b, dtype=dtype, count=block.count, offset=block.position) for b in buffers]
        a = torch.frombuffer(instruct, dtype=TORCH_DTYPES[block.source.instruct.dtype])
        b = torch.frombuffer(thinking, dtype=TORCH_DTYPES[block.source.thinking.dtype])
        values = [lambda_[block.tensor.name] for lambda_ in lambdas]
        wanted = TORCH_DTYPES[compute]
        if self._device == "cpu":
            kernel.write(a.to(wanted), b.to(wanted), values, out)
            return
        results = [torch.empty(block.count, dtype=dtype, device=self._device) for _ in out]
        kernel.write(a.to(self._device).to(wanted), b.to(self._device).to(wanted), values, results)
        for target, result in zip(out, results, strict=True):
            target.copy_(result)
