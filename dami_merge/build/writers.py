"""Writing K files at once: a few threads that hash and write chunks, and a bounded pool of chunks.

Where the file system allows it, chunks go to the disk directly (O_DIRECT): a family is larger
than the page cache is good for, and filling the cache costs more time than the disk does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import queue
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

__all__ = ["ChunkPool", "OutFile"]

_ALIGNMENT = 4096
_THREADS = 4
_DIRECT = getattr(os, "O_DIRECT", 0)


class OutFile:
    """A file that grows chunk by chunk; its sha256 is known when its last chunk is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY
        self._handle, self._direct = _open(path, self._flags)
        self._digest = hashlib.sha256()
        self._offset = 0

    def append(self, chunk: memoryview) -> None:
        """Hash and write the next bytes."""
        self._digest.update(chunk)
        if self._direct and len(chunk) % _ALIGNMENT:
            self._buffered()
        done = 0
        while done < len(chunk):
            done += self._write(chunk[done:], self._offset + done)
        self._offset += len(chunk)

    def finish(self) -> str:
        """Bring the file to the disk and return its sha256."""
        os.fsync(self._handle)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file, finished or not."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _write(self, data: memoryview, offset: int) -> int:
        try:
            return os.pwrite(self._handle, data, offset)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            self._buffered()  # a short direct write, or a stricter alignment than we know of
            return os.pwrite(self._handle, data, offset)

    def _buffered(self) -> None:
        if self._direct:
            flags = fcntl.fcntl(self._handle, fcntl.F_GETFL)
            fcntl.fcntl(self._handle, fcntl.F_SETFL, flags & ~_DIRECT)
            self._direct = False


class ChunkPool:
    """Page-aligned chunks that travel between the computing and the writing threads, `each` for each file.

    Each file's chunks are written by one thread, in order. An error in a thread is raised by
    the next call here.
    """

    def __init__(self, chunk: int, files: int, each: int) -> None:
        self._free: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        for _ in range(each * files):
            self._free.put(mmap.mmap(-1, chunk))
        threads = min(_THREADS, files)
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix="write") for _ in range(threads)]
        self._pending: list[Future[object]] = []

    def __enter__(self) -> ChunkPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)

    def take(self) -> mmap.mmap:
        """Return a free chunk, waiting for one."""
        self._raise_errors()
        return self._free.get()

    def write(self, index: int, file: OutFile, chunk: mmap.mmap, length: int) -> None:
        """Hand over a filled chunk of file number `index`; it comes back to the pool by itself."""

        def work() -> None:
            try:
                with memoryview(chunk) as whole, whole[:length] as view:
                    file.append(view)
            finally:
                self._free.put(chunk)

        self._pending.append(self._threads[index % len(self._threads)].submit(work))

    def finish(self, files: list[OutFile]) -> list[str]:
        """Wait for everything, bring all files to the disk and return their hashes."""
        ends = [self._threads[i % len(self._threads)].submit(file.finish) for i, file in enumerate(files)]
        hashes = []
        self._raise_errors(wait=True)
        for end in ends:
            hashes.append(end.result())
        return hashes

    def _raise_errors(self, *, wait: bool = False) -> None:
        left = []
        for future in self._pending:
            if wait or future.done():
                future.result()
            else:
                left.append(future)
        self._pending = left


def _open(path: Path, flags: int) -> tuple[int, bool]:
    if _DIRECT:
        with contextlib.suppress(OSError):
            return os.open(path, flags | _DIRECT, 0o644), True
    return os.open(path, flags, 0o644), False
