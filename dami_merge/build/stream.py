"""One shard for many variants: both endpoints read once, every variant written, memory flat.

All variants of a shard have one layout, so they grow in lockstep: a chunk is a run of the
file's bytes, cut into blocks small enough for the processor's cache. T−I is computed once for
a block and used for every λ.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dami_merge.build.hashing import InputHashes
from dami_merge.build.layout import ITEMSIZE, OutTensor, Shard
from dami_merge.build.plan import Source
from dami_merge.build.reader import EndpointReader, Span, read_pairs, spans_whole_file
from dami_merge.build.writers import ChunkPool, OutFile
from dami_merge.interpolation import BlockInterpolator

__all__ = ["TORCH_DTYPES", "EndpointFiles", "ShardStream"]

TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
"""torch's name of each dtype that can be interpolated."""

_BLOCK = 1 << 19  # elements; four fp32 copies of a block stay within a common L3 cache
_CHUNK = 4 << 20
_MEMORY = 96 << 20  # bytes for all chunks of all variants together


@dataclass(frozen=True)
class EndpointFiles:
    """A local endpoint: its folder, the sizes of its weight files, and their hashes."""

    folder: Path
    sizes: Mapping[str, int]
    hashes: InputHashes


@dataclass(frozen=True)
class _Block:
    """Elements of one tensor that stand at `position` of the current chunk."""

    tensor: OutTensor
    source: Source
    first: int
    count: int
    position: int

    def span(self, thinking: bool) -> Span:
        info = self.source.thinking if thinking else self.source.instruct
        size = ITEMSIZE[info.dtype]
        return Span(info.file, info.start + self.first * size, self.count * size)


class ShardStream:
    """Streams shards of a plan from two endpoints."""

    def __init__(
        self, instruct: EndpointFiles, thinking: EndpointFiles, sources: Mapping[str, Source], *, device: str = "cpu"
    ) -> None:
        self._ends = (instruct, thinking)
        self._sources = sources
        self._device = device
        self._kernel = BlockInterpolator(_BLOCK, device)

    def write(
        self,
        shard: Shard,
        paths: Sequence[Path],
        lambdas: Sequence[Mapping[str, float]],
        progress: Callable[[int], object],
    ) -> list[str]:
        """Write the shard's file for each variant, on the disk when this returns; return their sha256.

        `lambdas` gives each variant's λ by tensor. `progress` is called with bytes written.
        """
        files: list[OutFile] = []
        threads = torch.get_num_threads()
        # Blocks are small and the other cores hash and write: torch's own threads would only wait.
        torch.set_num_threads(1)
        chunk_size = _chunk_size(len(paths))
        streamed = self._begin_hashes(shard)
        try:
            for path in paths:
                files.append(OutFile(path))
            with ChunkPool(chunk_size, len(paths)) as pool:
                self._stream(shard, files, lambdas, pool, chunk_size, progress)
                hashes = pool.finish(files)
            for end, file in streamed:
                end.hashes.end(file)
            return hashes
        finally:
            torch.set_num_threads(threads)
            for end in self._ends:
                end.hashes.forget()
            for out in files:
                out.close()

    def _stream(
        self,
        shard: Shard,
        files: Sequence[OutFile],
        lambdas: Sequence[Mapping[str, float]],
        pool: ChunkPool,
        chunk_size: int,
        progress: Callable[[int], object],
    ) -> None:
        capacity = _BLOCK * max((_widest(self._sources[t.name]) for t in shard.tensors), default=1)
        a, b = (EndpointReader(end.folder, end.hashes, capacity) for end in self._ends)
        with a, b:
            chunks = list(_chunks(shard, self._sources, chunk_size))
            spans = ((block.span(False), block.span(True)) for _, _, blocks in chunks for block in blocks)
            data = read_pairs(a, b, spans)
            for start, length, blocks in chunks:
                buffers = [pool.take() for _ in files]
                _put_header(shard, start, buffers)
                for block in blocks:
                    first, second = next(data)
                    self._compute(block, first, second, lambdas, buffers)
                for index, (file, buffer) in enumerate(zip(files, buffers, strict=True)):
                    pool.write(index, file, buffer, length)
                progress(length * len(files))

    def _compute(
        self,
        block: _Block,
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
            self._kernel.write(a.to(wanted), b.to(wanted), values, out)
            return
        results = [torch.empty(block.count, dtype=dtype, device=self._device) for _ in out]
        self._kernel.write(a.to(self._device).to(wanted), b.to(self._device).to(wanted), values, results)
        for target, result in zip(out, results, strict=True):
            target.copy_(result)

    def _begin_hashes(self, shard: Shard) -> list[tuple[EndpointFiles, str]]:
        # An endpoint's file that this shard reads from front to back is hashed on the way.
        begun = []
        for thinking, end in enumerate(self._ends):
            pairs = [self._sources[tensor.name] for tensor in shard.tensors]
            infos = [pair.thinking if thinking else pair.instruct for pair in pairs]
            file = spans_whole_file(infos, end.sizes)
            if file is not None and not end.hashes.known(file):
                end.hashes.begin(file, infos[0].start)
                begun.append((end, file))
        return begun


def _chunks(shard: Shard, sources: Mapping[str, Source], chunk_size: int) -> Iterator[tuple[int, int, list[_Block]]]:
    blocks: list[_Block] = []
    start = 0
    for tensor in shard.tensors:
        size = ITEMSIZE[tensor.dtype]
        first = 0
        while first < tensor.elements:
            offset = tensor.start + first * size
            while offset >= start + chunk_size:
                yield start, chunk_size, blocks
                start, blocks = start + chunk_size, []
            count = min(_BLOCK, tensor.elements - first, (start + chunk_size - offset) // size)
            blocks.append(_Block(tensor, sources[tensor.name], first, count, offset - start))
            first += count
    while start < shard.size:
        length = min(chunk_size, shard.size - start)
        yield start, length, blocks
        start, blocks = start + length, []


def _put_header(shard: Shard, start: int, buffers: Sequence[mmap.mmap]) -> None:
    part = shard.header[start : start + len(buffers[0])]
    for buffer in buffers:
        buffer[: len(part)] = part


def _widest(source: Source) -> int:
    return max(ITEMSIZE[source.instruct.dtype], ITEMSIZE[source.thinking.dtype])


def _chunk_size(variants: int) -> int:
    size = _CHUNK
    while size > 1 << 16 and 2 * variants * size > _MEMORY:
        size //= 2
    return size
