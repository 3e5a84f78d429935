"""Checks of the endpoints' bytes that a build makes: equal buffers, announced hashes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from dami_merge.build.build_plan import Plan
from dami_merge.checkpoints.checkpoint import Checkpoint, TensorInfo
from dami_merge.files.hashing import InputHashes
from dami_router.errors import CheckpointError

__all__ = ["check_announced", "check_buffers", "hash_together"]

_BLOCK = 1 << 20


def check_buffers(plan: Plan, instruct: Checkpoint, thinking: Checkpoint) -> None:
    """Refuse endpoints whose integer buffers differ: they are copied, so there must be one answer."""
    for name, source in plan.sources.items():
        if source.compute is None and not _equal(instruct, source.instruct, thinking, source.thinking):
            raise CheckpointError(
                f"`{name}` ({source.instruct.dtype}) differs between the endpoints; integer tensors cannot be"
                " interpolated and are copied only where they agree",
                hint="the endpoints are not two fine-tunes of one base",
            )


def check_announced(side: Checkpoint, hashes: InputHashes) -> None:
    """Refuse downloaded weights whose content is not what the Hub announced."""
    for file in sorted({info.file for info in side.tensors.values()}):
        announced = (side.file_hashes or {}).get(file, "")
        if len(announced) == 64 and hashes.of(file) != announced:
            raise CheckpointError(
                f"{side.ref}: {file} is damaged: sha256 {hashes.of(file)}, the Hub says {announced}",
                hint="delete it from the Hub's cache and run the command again",
            )


def hash_together(sides: list[tuple[InputHashes, list[str]]]) -> None:
    """Hash files of both endpoints, as many at once as there are processors."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(lambda job: job[0].of(job[1]), [(hashes, file) for hashes, files in sides for file in files]))


def _equal(a: Checkpoint, first: TensorInfo, b: Checkpoint, second: TensorInfo) -> bool:
    assert a.folder is not None
    assert b.folder is not None
    if first.nbytes != second.nbytes:
        return False
    with (a.folder / first.file).open("rb") as one, (b.folder / second.file).open("rb") as two:
        one.seek(first.start)
        two.seek(second.start)
        for done in range(0, first.nbytes, _BLOCK):
            count = min(_BLOCK, first.nbytes - done)
            if one.read(count) != two.read(count):
                return False
    return True
