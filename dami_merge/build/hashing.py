"""sha256 of files: read whole, or fed with the blocks that a build reads anyway."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from dami_router.errors import CheckpointError

__all__ = ["InputHashes", "file_sha256", "hashing_ahead"]

_BLOCK = 1 << 20
_AHEAD = 32 << 20  # large, because after each the thread must wait for Python's lock


def file_sha256(path: Path, *, progress: Callable[[int], None] | None = None) -> str:
    """Return the sha256 of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    _update(digest, path, progress)
    return digest.hexdigest()


@contextlib.contextmanager
def hashing_ahead(jobs: Sequence[tuple[InputHashes, str]]) -> Iterator[None]:
    """Hash files in a thread while the block runs, as far as it gets; `InputHashes.begin` goes on from there."""
    stop = threading.Event()

    def work() -> None:
        for hashes, file in jobs:
            hashes.ahead(file, stop)

    thread = threading.Thread(target=work, name="hash")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Running:
    """A file's sha256 so far: of its first `position` bytes, read while the file was as `stamp` says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digest = hashlib.sha256()
        self.position = 0
        self.stamp = _stamp(path)

    def take(self, start: int, data: memoryview) -> None:
        known = min(max(self.position - start, 0), len(data))
        self.digest.update(data[known:])
        self.position += len(data) - known


class InputHashes:
    """The content hashes of one endpoint's files, each file read as few times as possible.

    A file that the build reads once from front to back is hashed on the way (`begin`, `feed`,
    `end`), going on where `ahead` stopped; any other is hashed by reading it when its hash is
    asked for.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, str] = {}
        self._open: dict[str, _Running] = {}

    def of(self, file: str) -> str:
        """Return a file's sha256, reading it where it is not known yet."""
        if file not in self._known:
            try:
                self._known[file] = file_sha256(self._folder / file)
            except OSError as error:
                raise CheckpointError(f"{self._folder / file}: cannot be read: {error.strerror}") from None
        return self._known[file]

    def known(self, file: str) -> bool:
        """Whether a file's hash needs no reading any more."""
        return file in self._known

    def all(self, files: Iterable[str]) -> dict[str, str]:
        """Return the hashes of several files, sorted by name."""
        return {file: self.of(file) for file in sorted(files)}

    def ahead(self, file: str, stop: threading.Event) -> None:
        """Hash a file from its beginning until `stop` is set; what cannot be read is left to who needs it."""
        if file in self._known or file in self._open:
            return
        with contextlib.suppress(OSError), (self._folder / file).open("rb", buffering=0) as source:
            running = _Running(self._folder / file)
            view = memoryview(bytearray(_AHEAD))
            while not stop.is_set() and (count := source.readinto(view)):
                running.take(running.position, view[:count])
            self._open[file] = running

    def begin(self, file: str, upto: int) -> None:
        """Start hashing a file on the way, with its first `upto` bytes (the header)."""
        running = self._open.setdefault(file, _Running(self._folder / file))
        with (self._folder / file).open("rb") as source:
            running.take(0, memoryview(source.read(upto)))

    def feed(self, file: str, start: int, data: memoryview) -> None:
        """Take in the file's next bytes, which stand at `start`; ignored for a file that was not begun."""
        if file in self._open:
            self._open[file].take(start, data)

    def end(self, file: str) -> None:
        """Finish a file that was fed to its end; CheckpointError where somebody wrote to it meanwhile."""
        running = self._open.pop(file)
        if _stamp(running.path) != running.stamp:
            raise CheckpointError(
                f"{running.path}: changed while it was read", hint="run the command again when nobody writes to it"
            )
        self._known[file] = running.digest.hexdigest()

    def forget(self) -> None:
        """Drop files that were begun and not ended."""
        self._open.clear()


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _update(digest: hashlib._Hash, path: Path, progress: Callable[[int], None] | None) -> None:
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    handle = os.open(path, os.O_RDONLY)
    try:
        while count := os.readv(handle, [buffer]):
            digest.update(view[:count])
            if progress:
                progress(count)
    finally:
        os.close(handle)
