"""The two endpoints of a build: opened, compared, downloaded where they are on the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from dami_merge.build.hashing import InputHashes
from dami_merge.build.plan import Plan
from dami_merge.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from dami_merge.compatibility import Finding, compare
from dami_merge.recipe import ModelRef, Recipe
from dami_router.errors import CheckpointError

__all__ = ["PATTERNS", "Fetch", "Pair", "check_buffers", "compared", "download", "local", "open_pair"]

Fetch = Callable[[Checkpoint], Path]
"""Brings a repository at its commit to a local folder and returns that."""

PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*"]
"""What of a repository is downloaded: weights, and the small files that go with them."""
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Pair:
    """Both endpoints, with the warnings that comparing them gave."""

    instruct: Checkpoint
    thinking: Checkpoint
    warnings: tuple[Finding, ...]


def open_pair(recipe: Recipe, fetch: Fetch) -> Pair:
    """Open both endpoints, refuse what does not fit, and only then download what is not here."""
    pair = compared(recipe.instruct, recipe.thinking, recipe.dtype)
    return Pair(local(pair.instruct, fetch), local(pair.thinking, fetch), pair.warnings)


def compared(instruct: ModelRef, thinking: ModelRef, dtype: str | None) -> Pair:
    """Open both endpoints where they are, on the Hub too, and refuse what does not fit (CheckpointError)."""
    sides = open_checkpoint(instruct), open_checkpoint(thinking)
    findings = compare(*sides, dtype=dtype)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise CheckpointError(
            "the endpoints do not fit together:\n" + "\n".join(f"  {e.message}" for e in errors), hint=errors[0].hint
        )
    return Pair(*sides, tuple(findings))


def download(side: Checkpoint) -> Path:
    """Fetch a repository's weights and small files at the commit that was looked at."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(side.ref.path, revision=side.commit, allow_patterns=PATTERNS))
    except Exception as error:  # network libraries raise many kinds; each means "not here yet"
        raise CheckpointError(
            f"{side.ref}: the download stopped: {type(error).__name__}: {error}",
            hint="run the same command again; it goes on where it stopped",
        ) from None


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


def local(side: Checkpoint, fetch: Fetch) -> Checkpoint:
    """Return the endpoint in a local folder, fetched where it is on the Hub."""
    if side.folder is not None:
        return side
    folder = fetch(side)
    here = open_checkpoint(ModelRef(str(folder)))
    if {n: (t.dtype, t.shape) for n, t in here.tensors.items()} != {
        n: (t.dtype, t.shape) for n, t in side.tensors.items()
    }:
        raise CheckpointError(f"{side.ref}: the downloaded files are not what the Hub described")
    return replace(here, ref=side.ref, commit=side.commit, file_hashes=side.file_hashes)


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
