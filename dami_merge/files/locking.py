"""A lock on a folder that ends with the process that holds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dami_router.errors import FailureError
from dami_router.shared.durable import held

__all__ = ["locked"]


@contextmanager
def locked(path: Path, out: Path) -> Iterator[None]:
    """Hold the lock file while a build or a download works in `out`; raises FailureError while another one does."""
    hint = "wait for it, or give another folder"
    with held(path, FailureError(f"{out}: another build or download is at work in this folder", hint=hint)):
        yield
