"""Files that are complete or absent, also after a crash."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync", "write_atomically"]


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


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
