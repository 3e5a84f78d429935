"""Families to deploy, and the command itself, for the tests of `dami deploy`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dami_router.cli import main
from dami_router.manifest.family import MANIFEST, parse_family

QWEN3_4B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "hidden_size": 2560, "max_position_embeddings": 262144,
}  # fmt: skip
"""What Qwen3-4B-Instruct-2507's config.json says of its size."""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def family(
    folder: Path,
    *,
    name: str = "Qwen3-4B-DAMI",
    lambdas: tuple[float, ...] = (0.0, 0.6, 1.0),
    pushed: tuple[float, ...] | None = None,
    thinks: float = 0.6,
    parameters: int = 4_022_468_096,
    config: dict[str, Any] | None = None,
    **endpoint: Any,
) -> Path:
    """Write a family's folder without weights: the manifest, and a config.json for each variant.

    `pushed`: the λ of the variants that are on the Hub; all by default. `thinks`: from which λ on the template opens
    `<think>`.
    """
    folder.mkdir(parents=True)
    ends = {"architecture": "Qwen3ForCausalLM", "parameters": parameters, "dtype": "BF16", "files": {}, **endpoint}
    variants = []
    for x in lambdas:
        id = f"{name}-l{round(x * 100):03d}"
        hub = {"repo": f"acme/{id}", "revision": COMMIT} if pushed is None or x in pushed else None
        variants.append({
            "id": id, "lambda": x, "resolved": [], "folder": id, "files": {}, "hub": hub,
            "chat_template": {"source": "instruct", "sha256": None, "opens_think": x >= thinks},
            "sampling": {"source": None, "values": {}},
        })  # fmt: skip
        (folder / id).mkdir()
        (folder / id / "config.json").write_text(json.dumps({**QWEN3_4B, **(config or {})}))
    sources = {"instruct": "Qwen/Qwen3-4B-Instruct-2507", "thinking": "Qwen/Qwen3-4B-Thinking-2507"}
    manifest = {
        "schema_version": 1, "name": name, "created_with": {"tool": "dami-merge", "version": "0.1.0"},
        "endpoints": {side: {"source": source, **ends} for side, source in sources.items()},
        "path": "uniform", "recipe": "merge_method: dami\n", "variants": variants,
    }  # fmt: skip
    parse_family(json.dumps(manifest))
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def deploy(out: Path, place: Path | str, target: str, *options: str) -> int:
    """Run `dami deploy`; returns the exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(["deploy", str(place), "--target", target, "--out", str(out), *options])
    return int(stopped.value.code or 0)


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
