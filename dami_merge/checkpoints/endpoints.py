"""The two endpoints of a build: opened, compared, downloaded where they are on the Hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dami_merge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from dami_merge.checkpoints.compatibility import compare
from dami_merge.checkpoints.custom_code import CODE
from dami_merge.checkpoints.findings import Finding
from dami_merge.checkpoints.model_ref import ModelRef
from dami_router.errors import CheckpointError
from dami_router.manifest.hub_errors import told

__all__ = ["IGNORED", "PATTERNS", "Fetch", "Pair", "compared", "download", "download_with_code", "local", "open_pair"]

Fetch = Callable[[Checkpoint], Path]
"""Brings a repository at its commit to a local folder and returns that."""

PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*"]
"""What of a repository is downloaded: weights, and the small files that go with them."""

IGNORED = ["consolidated*", "adapter_*"]
"""What is not: the same weights in another layout, and adapters, beside a whole model."""


@dataclass(frozen=True)
class Pair:
    """Both endpoints, with the warnings that comparing them gave."""

    instruct: Checkpoint
    thinking: Checkpoint
    warnings: tuple[Finding, ...]


def open_pair(
    instruct: ModelRef, thinking: ModelRef, dtype: str | None, fetch: Fetch, *, only_instruct: Sequence[str] = ()
) -> Pair:
    """Open both endpoints, refuse what does not fit, and only then download what is not here."""
    pair = compared(instruct, thinking, dtype, only_instruct=only_instruct)
    return Pair(local(pair.instruct, fetch), local(pair.thinking, fetch), pair.warnings)


def compared(instruct: ModelRef, thinking: ModelRef, dtype: str | None, *, only_instruct: Sequence[str] = ()) -> Pair:
    """Open both endpoints where they are, on the Hub too, and refuse what does not fit (CheckpointError)."""
    sides = open_checkpoint(instruct), open_checkpoint(thinking)
    findings = compare(*sides, dtype=dtype, only_instruct=only_instruct)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise CheckpointError(
            "the endpoints do not fit together:\n" + "\n".join(f"  {e.message}" for e in errors), hint=errors[0].hint
        )
    return Pair(*sides, tuple(findings))


def download(side: Checkpoint) -> Path:
    """Fetch a repository's weights and small files at the commit that was looked at."""
    return _download(side, PATTERNS)


def download_with_code(side: Checkpoint) -> Path:
    """Fetch the same, and the repository's Python files; nothing runs them here."""
    return _download(side, [*PATTERNS, CODE])


def _download(side: Checkpoint, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            side.ref.path, revision=side.commit, allow_patterns=list(patterns), ignore_patterns=IGNORED
        )
        return Path(found)
    except Exception as error:  # network libraries raise many kinds; each means "not here yet"
        raise told(error, f"the download of {side.ref}", resumes=True) from None


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
