"""A lock on a folder that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dami_router.errors import FailureError

__all__ = ["locked"]


@contextmanager
def locked(path: Path, out: Path) -> Iterator[None]:
    """Hold the lock file while a build works in `out`; raises FailureError while another one does.

    The lock is the kernel's: it ends with the process, however that ends.
    """
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailureError(
                f"{out}: another build is at work in this folder", hint="wait for it, or give another folder"
            ) from None
        yield
    finally:
        os.close(handle)
