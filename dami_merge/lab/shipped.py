"""The pair and the rollouts that ship with the package; no training is needed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dami_router.errors import FailureError
from dami_router.shared.durable import write_atomically

__all__ = ["SHIPPED_PAIR", "SHIPPED_ROLLOUTS", "copy_pair"]

SHIPPED_PAIR = Path(__file__).parent / "pair"
"""Folder of ``instruct`` and ``thinking``, two complete bf16 checkpoints."""

SHIPPED_ROLLOUTS = Path(__file__).parent / "rollouts.jsonl.gz"
"""Answers of the shipped pair to the dev and test queries at λ = 0, 0.1 … 1."""


_HEAD_SIZE = 16


def copy_pair(directory: Path, *, head_size: int = _HEAD_SIZE) -> tuple[Path, Path]:
    """Copy the shipped pair into a directory and return its two folders, ``instruct`` and ``thinking``.

    With a `head_size` of 32 or 64, write the same functions with wider heads, in fp32 (see ``widening``).

    Equal files are left alone, so copying twice is harmless. Raises FailureError, before anything is written, if a
    file differs, does not belong to the pair, or has a folder in its place.
    """
    with tempfile.TemporaryDirectory() as name:
        pair = SHIPPED_PAIR
        if head_size != _HEAD_SIZE:
            from dami_merge.lab.widening import widen_pair

            pair = Path(name)
            widen_pair(SHIPPED_PAIR, pair, head_size)
        _copy(pair, directory)
    return directory / "instruct", directory / "thinking"


def _copy(pair: Path, directory: Path) -> None:
    sources = {f.relative_to(pair): f for f in sorted(pair.glob("*/*")) if f.is_file()}
    _refuse_other_content(directory, sources)
    for name, source in sources.items():
        if not (directory / name).exists():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            # Partial files lie outside the endpoint, which has only its own files even after a crash.
            write_atomically(directory / name, source.read_bytes(), work=directory)


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
                raise FailureError(f"{file} differs from what would be written; nothing was written", hint=_WAY_OUT)


_WAY_OUT = "choose a new directory, or remove this one"
