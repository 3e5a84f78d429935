"""Files that are complete or absent, also after a crash, and files that one process holds at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dami_router.errors import FailureError

__all__ = ["held", "sync", "write_atomically"]


def write_atomically(path: Path, content: bytes, *, work: Path | None = None) -> None:
    """Write a file in one step: under a temporary name, synced, then renamed. On return it is on the disk.

    The temporary file is in the folder `work`, on the same file system; by default beside `path`. After a failure,
    `path` is as it was, and there is no temporary file.
    """
    temporary = (work or path.parent) / f"{path.name}.tmp"
    try:
        with temporary.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def held(path: Path, busy: FailureError) -> Iterator[int]:
    """Open a file to read and append, new or as it is, while no other process holds it; raises `busy` while one does.

    The lock is the kernel's: it ends with the process, however that ends. Raises FailureError if it cannot be opened.
    """
    import fcntl

    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise FailureError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        yield handle
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
