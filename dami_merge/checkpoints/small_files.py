"""The small files beside a checkpoint's weights, read within limits."""

from __future__ import annotations

from pathlib import Path

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_router.errors import CheckpointError

__all__ = ["read_small_file"]

_MAX_BYTES = 256 << 20


def read_small_file(side: Checkpoint, name: str) -> bytes | None:
    """Return a small file of a local checkpoint, None where it has none.

    Raises CheckpointError for a link that leaves the folder, a file over 256 MiB, and one that cannot be read.
    """
    assert side.folder is not None
    path = side.folder / name
    if not path.is_file():
        return None
    if not _stays_inside(path, side.folder):
        raise CheckpointError(
            f"{side.ref}: {name} is a link to {path.resolve()}, outside the checkpoint's folder",
            hint="put a copy of the file there",
        )
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{side.ref}: {name} is larger than {_MAX_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{side.ref}: {name} cannot be read: {error.strerror}") from None


def _stays_inside(path: Path, folder: Path) -> bool:
    target = path.resolve()
    if target.is_relative_to(folder.resolve()):
        return True
    # The Hub's cache keeps the files of a snapshot as links into its repository's `blobs`.
    cache = folder.resolve().parent.parent
    return folder.resolve().parent.name == "snapshots" and target.is_relative_to(cache / "blobs")
