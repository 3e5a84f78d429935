"""Chat templates and sampling defaults of a checkpoint, read as Transformers 5 reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.small_files import read_small_file

__all__ = [
    "GENERATION_CONFIG", "TEMPLATE_FILE", "TOKENIZER_CONFIG", "generation_of", "opens_think", "read_sampling",
    "sampling_of", "template_of", "template_sha256",
]  # fmt: skip

TEMPLATE_FILE = "chat_template.jinja"


TOKENIZER_CONFIG = "tokenizer_config.json"


GENERATION_CONFIG = "generation_config.json"


_SAMPLING = (
    "do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "max_new_tokens",
)  # fmt: skip


def template_of(side: Checkpoint) -> Any:
    """Return an endpoint's chat template (text, or a list of named ones), as Transformers 5 finds it; else None."""
    text = side.read_text(TEMPLATE_FILE)
    if text is not None:
        return text
    for name in (TOKENIZER_CONFIG, "chat_template.json"):
        template = (side.read_json(name) or {}).get("chat_template")
        if isinstance(template, str | list):
            return template
    return None


def sampling_of(side: Checkpoint) -> dict[str, bool | int | float | None] | None:
    """Return the sampling defaults of an endpoint's generation_config.json, or None where it has none."""
    generation = generation_of(side)
    return None if generation is None else read_sampling(generation)


def template_sha256(template: Any) -> str | None:
    """Return the hash of a template's text, or of its JSON where there are several."""
    if template is None:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def opens_think(template: Any) -> bool:
    """Tell whether the generation prompt ends inside a `<think>` block. A reading of the text, not a rendering."""
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, Mapping)}
        template = named.get("default")
    if not isinstance(template, str) or "add_generation_prompt" not in template:
        return False
    end = template.rsplit("add_generation_prompt", 1)[-1]
    return "<think>" in end and "</think>" not in end.rsplit("<think>", 1)[-1]


def generation_of(side: Checkpoint) -> bytes | None:
    """Return the bytes of a local checkpoint's generation_config.json, None where it has none."""
    side.read_json(GENERATION_CONFIG)  # refuses what is no JSON object
    return read_small_file(side, GENERATION_CONFIG)


def read_sampling(generation: bytes | None) -> dict[str, bool | int | float | None]:
    """Return the sampling defaults in the bytes of a generation_config.json; none of None."""
    data = json.loads(generation) if generation is not None else {}
    return {key: data[key] for key in _SAMPLING if isinstance(data.get(key), bool | int | float)}
