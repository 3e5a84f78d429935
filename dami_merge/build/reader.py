"""Reading both endpoints once, in the order in which a shard needs them, one chunk ahead.

Plain reads into buffers that are used again: memory stays flat whatever the model's size,
which mapped files would not promise.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

from dami_merge.checkpoints.sides import Sides
from dami_merge.checkpoints.tensor_view import TensorView
from dami_merge.files.hashing import InputHashes
from dami_router.errors import CheckpointError

__all__ = ["EndpointReader", "Span", "Views", "read_pairs", "spans_whole_file"]

Spans = Sequence["Span | None"]

Views = list[memoryview]
"""The bytes of a chunk's spans, in their order; none where an endpoint gives nothing."""

_AHEAD = 1


@dataclass(frozen=True)
class Span:
    """A run of bytes in one file of an endpoint."""

    file: str
    start: int
    nbytes: int


class EndpointReader:
    """Reads the spans of one endpoint, chunk by chunk, in a thread of its own, hashing what it reads.

    `capacity` is the largest chunk in bytes; `held` the chunks that a caller still uses when it asks for more.
    """

    def __init__(self, hashes: InputHashes, capacity: int, held: int) -> None:
        self._hashes = hashes
        self._handles: dict[str, int] = {}
        self._buffers = [memoryview(bytearray(capacity)) for _ in range(held + 1 + _AHEAD)]
        self._next = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read")

    def __enter__(self) -> EndpointReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
        for handle in self._handles.values():
            os.close(handle)

    def request(self, spans: Spans) -> Future[Views]:
        """Start reading a chunk; its views are good until `held` + 1 more chunks were taken after it."""
        buffer = self._buffers[self._next]
        self._next = (self._next + 1) % len(self._buffers)
        return self._pool.submit(self._read, spans, buffer)

    def check(self) -> None:
        """Raise CheckpointError where a file that was read is no longer what it was when the build began."""
        for file in self._handles:
            self._hashes.check(file)

    def _read(self, spans: Spans, buffer: memoryview) -> Views:
        views, taken = [], 0
        for span in spans:
            count = span.nbytes if span else 0
            views.append(buffer[taken : taken + count])
            taken += count
            if span:
                self._fill(span, views[-1])
        return views

    def _fill(self, span: Span, view: memoryview) -> None:
        path, done = self._hashes.folder / span.file, 0
        try:
            handle = self._handle(span.file)
            while done < span.nbytes:
                count = os.preadv(handle, [view[done:]], span.start + done)
                if count == 0:
                    raise CheckpointError(f"{path}: ends at byte {span.start + done}; it shrank while it was read")
                done += count
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
        self._hashes.feed(span.file, span.start, view)

    def _handle(self, file: str) -> int:
        if file not in self._handles:
            self._handles[file] = os.open(self._hashes.folder / file, os.O_RDONLY)
        return self._handles[file]


def read_pairs(readers: Sides[EndpointReader], chunks: Iterable[Sides[list[Span | None]]]) -> Iterator[Sides[Views]]:
    """Yield the bytes of chunk after chunk from both endpoints, reading ahead."""
    waiting: deque[Sides[Future[Views]]] = deque()
    for spans in chunks:
        waiting.append(Sides(readers.instruct.request(spans.instruct), readers.thinking.request(spans.thinking)))
        if len(waiting) > _AHEAD:
            yield _results(waiting.popleft())
    for asked in waiting:
        yield _results(asked)


def _results(asked: Sides[Future[Views]]) -> Sides[Views]:
    return Sides(asked.instruct.result(), asked.thinking.result())


def spans_whole_file(views: Sequence[TensorView], size_of: Callable[[str], int]) -> tuple[str, int] | None:
    """Return the file that these tensors, read in this order, cover from its first tensor to its end, and that start.

    None where they do not cover one file from front to back.
    """
    runs = [piece.bytes for view in views for piece in view.pieces]
    if not runs or len({file for file, _, _ in runs}) != 1:
        return None
    file, start, _ = runs[0]
    whole = all(before[2] == after[1] for before, after in itertools.pairwise(runs))
    return (file, start) if whole and runs[-1][2] == size_of(file) else None
