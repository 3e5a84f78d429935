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
from typing import Any, Literal, Protocol

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.endpoints import Pair
from dami_merge.checkpoints.pair_templates import PairTemplates
from dami_merge.files.hashing import file_sha256

__all__ = ["Described", "Description", "name_of"]

_LOG = logging.getLogger(__name__)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ABLE = {"log_probs": True, "prompt_log_probs": True, "top_n": True}


class Described(Protocol):
    """What `/info` says of an engine that holds a pair. `templates` is None if it works on token ids alone."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def endpoints(self) -> Pair | None: ...  # noqa: D102
    @property
    def templates(self) -> PairTemplates | None: ...  # noqa: D102
    @property
    def max_length(self) -> int: ...  # noqa: D102
    @property
    def max_rows(self) -> int: ...  # noqa: D102


@dataclass
class Description:
    """Describes an engine; `path` is how its family spreads λ, as written in a manifest.

    `caps_thinking`: the server takes `thinking_token_budget`.
    """

    engine: Described
    path: object
    kind: Literal["embedded", "vllm"] = "embedded"
    files: dict[str, dict[str, str]] = field(default_factory=lambda: {"instruct": {}, "thinking": {}})
    caps_thinking: bool = True

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
        templates = engine.templates
        live = {
            **sides, "path": self.path, "opens_think_from": templates.opens_think_from() if templates else None,
            "capabilities": {
                **_ABLE,
                "thinking_budget": self.caps_thinking,
                "hidden_states": self.kind == "embedded",
                "chat_template": bool(templates and templates.template(0.0)),
            },
            "max_rows": engine.max_rows,
        }  # fmt: skip
        return {
            "model_id": engine.name, "model_sha": None, "model_pipeline_tag": "text-generation",
            "max_input_tokens": engine.max_length - 1, "max_total_tokens": engine.max_length,
            "max_client_batch_size": 1, "max_best_of": 1, "engine": self.kind, "live": live,
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
    if checkpoint.folder is None:
        return (checkpoint.file_hashes or {}).get(name)
    path = checkpoint.folder / name
    known = path.resolve().name
    if _SHA256.fullmatch(known) and path.is_symlink():
        return known
    try:
        return file_sha256(path)
    except OSError as error:
        _LOG.warning("%s: cannot be read: %s; /info leaves out its sha256", path, error.strerror)
        return None
