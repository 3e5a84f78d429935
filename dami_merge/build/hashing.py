"""sha256 of files: read whole, or fed with the blocks that a build reads anyway."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from dami_router.errors import CheckpointError

__all__ = ["InputHashes", "file_sha256"]

_BLOCK = 1 << 20


def file_sha256(path: Path, *, progress: Callable[[int], None] | None = None) -> str:
    """Return the sha256 of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    _update(digest, path, progress)
    return digest.hexdigest()


class InputHashes:
    """The content hashes of one endpoint's files, each file read as few times as possible.

    A file that the build reads once from front to back is hashed on the way (`begin`, `feed`,
    `end`); any other is hashed by reading it when its hash is asked for.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, str] = {}
        self._open: dict[str, hashlib._Hash] = {}

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

    def begin(self, file: str, upto: int) -> None:
        """Start hashing a file on the way, with its first `upto` bytes (the header)."""
        with (self._folder / file).open("rb") as source:
            self._open[file] = hashlib.sha256(source.read(upto))

    def feed(self, file: str, data: memoryview) -> None:
        """Take in the file's next bytes; ignored for a file that was not begun."""
        if file in self._open:
            self._open[file].update(data)

    def end(self, file: str) -> None:
        """Finish a file that was fed to its end."""
        self._known[file] = self._open.pop(file).hexdigest()

    def forget(self) -> None:
        """Drop files that were begun and not ended."""
        self._open.clear()


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
