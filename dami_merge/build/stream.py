"""One shard for many variants: both endpoints read once, every variant written, memory flat.

All variants of a shard have one layout, so they grow in lockstep, chunk by chunk: while some
chunks are computed, the next are read and those before are hashed and written.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from dami_merge.build.build_plan import TensorSource
from dami_merge.build.chunks import Chunk, chunk_size, cut
from dami_merge.build.compute import LANES, Lanes, Work
from dami_merge.build.layout import Shard
from dami_merge.build.reader import EndpointReader, read_pairs, spans_whole_file
from dami_merge.build.writers import ChunkPool, OutFile
from dami_merge.checkpoints.sides import Sides
from dami_merge.files.hashing import InputHashes

__all__ = ["ShardStream"]

_BUFFERS = LANES + 1  # for each variant: what is computed, and what is written meanwhile


class ShardStream:
    """Streams shards of a plan from two endpoints."""

    def __init__(self, inputs: Sides[InputHashes], sources: Mapping[str, TensorSource], *, device: str = "cpu") -> None:
        self._inputs = inputs
        self._sources = sources
        self._lanes = Lanes(Sides(inputs.instruct.folder, inputs.thinking.folder), device)

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
        size = chunk_size(_BUFFERS * len(paths))
        streamed = self._begin_hashes(shard)
        try:
            for path in paths:
                files.append(OutFile(path))
            with ChunkPool(size, len(paths), _BUFFERS) as pool:
                self._stream(shard, list(cut(shard, self._sources, size)), files, lambdas, pool, progress)
                hashes = pool.finish(files)
            for side, file in streamed:
                side.end(file)
            return hashes
        finally:
            for side in self._inputs:
                side.forget()
            for out in files:
                out.close()

    def _stream(
        self,
        shard: Shard,
        chunks: Sequence[Chunk],
        files: Sequence[OutFile],
        lambdas: Sequence[Mapping[str, float]],
        pool: ChunkPool,
        progress: Callable[[int], object],
    ) -> None:
        spans = [chunk.spans() for chunk in chunks]
        capacity = max((sum(span.nbytes for span in side if span) for pair in spans for side in pair), default=0)
        readers = Sides(*(EndpointReader(side, capacity, LANES) for side in self._inputs))
        computed: deque[tuple[Future[None], Work]] = deque()

        def hand_over() -> None:
            done, work = computed.popleft()
            done.result()
            for index, (file, buffer) in enumerate(zip(files, work.buffers, strict=True)):
                pool.write(index, file, buffer, work.chunk.length)
            progress(work.chunk.length * len(files))

        with readers.instruct, readers.thinking, self._lanes:
            for chunk, data in zip(chunks, read_pairs(readers, spans), strict=True):
                if len(computed) == LANES:
                    hand_over()
                buffers = [pool.take() for _ in files]
                _put_header(shard, chunk.start, buffers)
                work = Work(chunk, data, lambdas, buffers)
                computed.append((self._lanes.start(work), work))
            while computed:
                hand_over()
            readers.instruct.check()
            readers.thinking.check()
            self._check_scales(shard)

    def _check_scales(self, shard: Shard) -> None:
        # Scales are read beside the stream, from files that the readers may not have opened.
        for tensor in shard.tensors:
            source = self._sources[tensor.name]
            for side, view in zip(self._inputs, source.views, strict=True):
                for file in {piece.scaling.info.file for piece in view.pieces if piece.scaling}:
                    side.check(file)

    def _begin_hashes(self, shard: Shard) -> list[tuple[InputHashes, str]]:
        # An endpoint's file that this shard reads from front to back is hashed on the way.
        begun = []
        sources = [self._sources[tensor.name] for tensor in shard.tensors]
        views = Sides([source.instruct for source in sources], [source.thinking for source in sources])
        for side, read in zip(self._inputs, views, strict=True):
            whole = spans_whole_file(read, side.size)
            if whole is not None and not side.known(whole[0]):
                side.begin(*whole)
                begun.append((side, whole[0]))
        return begun


def _put_header(shard: Shard, start: int, buffers: Sequence[mmap.mmap]) -> None:
    part = shard.header[start : start + len(buffers[0])]
    for buffer in buffers:
        buffer[: len(part)] = part
