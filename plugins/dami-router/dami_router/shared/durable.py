"""Files that are there whole or not at all, also after a crash."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync", "write_atomically"]


def write_atomically(path: Path, content: bytes, *, work: Path | None = None) -> None:
    """Write a file in one step: under a temporary name first, on the disk when this returns.

    The temporary file lies in the folder `work`, which must be on the same file system; without
    one, beside `path`. A failure leaves what was at `path`, and no temporary file.
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
    """Bring a file's content, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
