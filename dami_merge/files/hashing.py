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
    """Hash files in a thread while the block runs, as far as it gets; `InputHashes` goes on from there."""
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
    """A file's sha256 so far: of its first `position` bytes."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.position = 0

    def take(self, start: int, data: memoryview) -> None:
        known = min(max(self.position - start, 0), len(data))
        self.digest.update(data[known:])
        self.position += len(data) - known


class InputHashes:
    """The content hashes of one endpoint's files, each file read as few times as possible.

    A file that the build reads once from front to back is hashed on the way (`begin`, `feed`,
    `end`); any other is hashed by reading it when its hash is asked for. Both go on where
    `ahead` stopped. `weights` are the files that a build is made from: what is hashed and what is
    built from must be these as they are now, and `check` finds a file that changed since.
    """

    def __init__(self, folder: Path, weights: Iterable[str]) -> None:
        self.folder = folder
        self._stamps = {file: _stamp(folder / file) for file in weights}
        self._known: dict[str, str] = {}
        self._begun: dict[str, _Running] = {}
        self._ahead: dict[str, _Running] = {}

    def size(self, file: str) -> int:
        """Return the size of a weight file in bytes."""
        return self._stamps[file][1]

    def of(self, file: str) -> str:
        """Return a file's sha256, reading what of it is not hashed yet."""
        if file not in self._known:
            running = self._ahead.pop(file, _Running())
            try:
                _update(running.digest, self.folder / file, None, running.position)
            except OSError as error:
                raise CheckpointError(f"{self.folder / file}: cannot be read: {error.strerror}") from None
            if file in self._stamps:
                self.check(file)
            self._known[file] = running.digest.hexdigest()
        return self._known[file]

    def check(self, file: str) -> None:
        """Raise CheckpointError where a weight file is no longer as it was."""
        try:
            same = _stamp(self.folder / file) == self._stamps[file]
        except OSError:
            same = False
        if not same:
            raise CheckpointError(
                f"{self.folder / file}: changed while it was read",
                hint="run the command again when no other process writes to it",
            )

    def known(self, file: str) -> bool:
        """Whether a file's hash needs no reading any more."""
        return file in self._known

    def all(self, files: Iterable[str]) -> dict[str, str]:
        """Return the hashes of several files, sorted by name."""
        return {file: self.of(file) for file in sorted(files)}

    def ahead(self, file: str, stop: threading.Event) -> None:
        """Hash a file from its beginning until `stop` is set; errors are left to the caller that needs the file."""
        if file in self._known:
            return
        with contextlib.suppress(OSError), (self.folder / file).open("rb", buffering=0) as source:
            running = _Running()
            view = memoryview(bytearray(_AHEAD))
            while not stop.is_set() and (count := source.readinto(view)):
                running.take(running.position, view[:count])
            self._ahead[file] = running

    def begin(self, file: str, upto: int) -> None:
        """Start hashing a file on the way, with its first `upto` bytes (the header)."""
        running = self._begun[file] = self._ahead.pop(file, _Running())
        with (self.folder / file).open("rb") as source:
            running.take(0, memoryview(source.read(upto)))

    def feed(self, file: str, start: int, data: memoryview) -> None:
        """Take in the file's next bytes, which stand at `start`; ignored for a file that was not begun."""
        if file in self._begun:
            self._begun[file].take(start, data)

    def end(self, file: str) -> None:
        """Finish a file that was fed to its end."""
        self.check(file)
        self._known[file] = self._begun.pop(file).digest.hexdigest()

    def forget(self) -> None:
        """Drop files that were begun and not ended."""
        self._begun.clear()


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _update(digest: hashlib._Hash, path: Path, progress: Callable[[int], None] | None, position: int = 0) -> None:
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.lseek(handle, position, os.SEEK_SET)
        while count := os.readv(handle, [buffer]):
            digest.update(view[:count])
            if progress:
                progress(count)
    finally:
        os.close(handle)
