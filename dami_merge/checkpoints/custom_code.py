"""Python files that a checkpoint brings along, and the `auto_map` entries that make a loader run them.

Nothing here imports or reads such code; it is left out of variants, or copied when the user says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.findings import Finding, few
from dami_merge.checkpoints.small_files import read_small_file

__all__ = ["AUTO_MAP", "CODE", "code_files", "compare_code", "named_code"]

AUTO_MAP = "auto_map"
CODE = "*.py"
_CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


def named_code(side: Checkpoint) -> list[str]:
    """Return the classes that an endpoint's configs want from Python code, such as `modeling_x.XForCausalLM`."""
    found: list[str] = []
    for name in _CONFIGS:
        config = side.config if name == "config.json" else side.read_json(name) or {}
        mapping = config.get(AUTO_MAP)
        if isinstance(mapping, Mapping):
            found += _classes(mapping)
    return list(dict.fromkeys(found))


def code_files(side: Checkpoint) -> dict[str, bytes]:
    """Return a local endpoint's Python files, as bytes that were not inspected."""
    assert side.folder is not None
    files = {path.name: read_small_file(side, path.name) for path in sorted(side.folder.glob(CODE))}
    return {name: content for name, content in files.items() if content is not None}


def compare_code(instruct: Checkpoint) -> Iterator[Finding]:
    """Yield a warning where Instruct's configs name Python code."""
    named = named_code(instruct)
    if named:
        yield Finding(
            "warning", "custom_code",
            f"instruct's configs name Python code ({few(named)}), which `dami build` leaves out: variants load only"
            " where the loader has the architecture built in",
            "`dami build --trust-remote-code` copies Instruct's Python files unread",
        )  # fmt: skip


def _classes(mapping: Mapping[str, Any]) -> Iterator[str]:
    for value in mapping.values():
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str):
                yield name
