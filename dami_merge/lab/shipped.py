"""The pair and the rollouts that come with the package, so that nobody needs to train."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dami_router.errors import FailureError

__all__ = ["SHIPPED_PAIR", "SHIPPED_ROLLOUTS", "copy_pair"]

SHIPPED_PAIR = Path(__file__).parent / "pair"
"""Holds ``instruct`` and ``thinking``, two complete bf16 checkpoints."""

SHIPPED_ROLLOUTS = Path(__file__).parent / "rollouts.jsonl.gz"
"""The dev and test queries answered by the shipped pair at λ = 0, 0.1 … 1."""


def copy_pair(directory: Path) -> tuple[Path, Path]:
    """Put the shipped pair into a directory and return its two folders, ``instruct`` and ``thinking``.

    Files that are there already and equal are left alone, so copying twice does no harm. Raises FailureError,
    before anything is written, where a file differs, is not ours, or has a folder in its place.
    """
    sources = {f.relative_to(SHIPPED_PAIR): f for f in sorted(SHIPPED_PAIR.glob("*/*")) if f.is_file()}
    _refuse_other_content(directory, sources)
    for name, source in sources.items():
        if not (directory / name).exists():
            _write(source.read_bytes(), directory / name)
    return directory / "instruct", directory / "thinking"


def _refuse_other_content(directory: Path, sources: dict[Path, Path]) -> None:
    for place in (directory, *(directory / endpoint for endpoint in ("instruct", "thinking"))):
        if place.exists() and not place.is_dir():
            raise FailureError(f"{place} is a file; expected a directory for the lab pair", hint=_WAY_OUT)
    for endpoint in ("instruct", "thinking"):
        there = (directory / endpoint).iterdir() if (directory / endpoint).is_dir() else ()
        for file in sorted(there):
            source = sources.get(file.relative_to(directory))
            if source is None:
                raise FailureError(f"{file} does not belong to the lab pair; nothing was written", hint=_WAY_OUT)
            if not file.is_file() or file.read_bytes() != source.read_bytes():
                raise FailureError(f"{file} differs from the shipped one; nothing was written", hint=_WAY_OUT)


_WAY_OUT = "choose a new directory, or remove this one yourself"


def _write(content: bytes, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent.parent, prefix=".dami-", delete=False) as partial:
        try:
            partial.write(content)
            partial.flush()
            os.fsync(partial.fileno())
            Path(partial.name).chmod(0o644)
            Path(partial.name).replace(file)
        except BaseException:
            Path(partial.name).unlink(missing_ok=True)
            raise
