"""Checks of the endpoints' bytes that a build makes: equal buffers, announced hashes."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

from dami_merge.build.build_plan import Plan
from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.tensor_view import TensorView
from dami_merge.files.hashing import InputHashes
from dami_router.errors import CheckpointError

__all__ = ["check_announced", "check_buffers", "hash_together"]

_BLOCK = 1 << 20


def check_buffers(plan: Plan, instruct: Checkpoint, thinking: Checkpoint) -> None:
    """Refuse endpoints whose integer buffers differ: they are copied, so there must be one answer."""
    for name, source in plan.sources.items():
        if (
            source.compute is None
            and not source.thinking.absent
            and _bytes(instruct, source.instruct) != _bytes(thinking, source.thinking)
        ):
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


def _bytes(side: Checkpoint, view: TensorView) -> str:
    # As a hash: buffers are small as a rule, but nothing promises it.
    assert side.folder is not None
    digest = hashlib.sha256()
    for file, start, end in (piece.bytes for piece in view.pieces):
        with (side.folder / file).open("rb") as stream:
            stream.seek(start)
            for done in range(start, end, _BLOCK):
                digest.update(stream.read(min(_BLOCK, end - done)))
    return digest.hexdigest()
