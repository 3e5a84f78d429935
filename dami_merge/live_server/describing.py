"""The content of a live server's `/info`: TGI's fields, and under `live` the pair and the server's capabilities.

A router compares the pair with the one it expects: names, commits, and sha256 of the weights. Files in the Hub's
cache have their hash as their name; others are hashed in the background and reported once known.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.files.hashing import file_sha256
from dami_merge.live import Engine
from dami_merge.live.tokenizing import Tokenizing

__all__ = ["Description"]

_LOG = logging.getLogger(__name__)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_STEPS = 20
_ABLE = {"log_probs": True, "prompt_log_probs": True, "top_n": True}


@dataclass
class Description:
    """Describes an engine; `path` is how its family spreads λ, as written in a manifest."""

    engine: Engine
    path: object
    files: dict[str, dict[str, str]] = field(default_factory=lambda: {"instruct": {}, "thinking": {}})

    def start(self) -> None:
        """Start hashing the files in the background."""
        threading.Thread(target=self.hash, name="dami-hash", daemon=True).start()

    def hash(self) -> None:
        """Determine the sha256 of all weight files."""
        for side, checkpoint in self._sides().items():
            found = {name: _sha256(checkpoint, name) for name in sorted({t.file for t in checkpoint.tensors.values()})}
            self.files[side] = {name: digest for name, digest in found.items() if digest}

    def info(self) -> Mapping[str, Any]:
        """Return the content of `/info`."""
        engine = self.engine
        sides = {side: self._endpoint(side, checkpoint) for side, checkpoint in self._sides().items()}
        texts = engine.texts
        live = {
            **sides, "path": self.path, "opens_think_from": _opens_think_from(texts) if texts else None,
            "capabilities": {**_ABLE, "chat_template": bool(texts and texts.template(0.0))},
            "max_rows": engine.max_rows,
        }  # fmt: skip
        return {
            "model_id": engine.name, "model_sha": None, "model_pipeline_tag": "text-generation",
            "max_input_tokens": engine.max_length - 1, "max_total_tokens": engine.max_length,
            "max_client_batch_size": 1, "max_best_of": 1, "live": live,
        }  # fmt: skip

    def _sides(self) -> Mapping[str, Checkpoint]:
        pair = self.engine.endpoints
        return {"instruct": pair.instruct, "thinking": pair.thinking} if pair else {}

    def _endpoint(self, side: str, checkpoint: Checkpoint) -> dict[str, Any]:
        return {"name": name_of(checkpoint), "commit": checkpoint.commit, "files": self.files[side]}


def name_of(checkpoint: Checkpoint) -> str:
    """Return an endpoint's public name: its Hub id, or the name of its folder without the path."""
    path = checkpoint.ref.path
    return path if checkpoint.commit else Path(path).expanduser().resolve().name


def _sha256(checkpoint: Checkpoint, name: str) -> str | None:
    assert checkpoint.folder is not None
    path = checkpoint.folder / name
    known = path.resolve().name
    if _SHA256.fullmatch(known) and path.is_symlink():
        return known
    try:
        return file_sha256(path)
    except OSError as error:
        _LOG.warning("%s: cannot be read: %s; /info leaves out its sha256", path, error.strerror)
        return None


def _opens_think_from(texts: Tokenizing) -> float | None:
    """Return the smallest λ whose chat template opens a `<think>` block in the prompt; None if none does."""
    if not texts.opens_think(1.0):
        return None
    low, high = 0.0, 1.0
    if texts.opens_think(low):
        return low
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if texts.opens_think(middle) else (middle, high)
    return round(high, 6)
