"""Whether Transformers 4.51, which TGI pins, reads a variant as Transformers 5 does.

It would overlook all of this without a word: a rope_theta inside `rope_parameters` (it takes
10000 instead), `dtype` for `torch_dtype`, an unknown tokenizer class, a template that stands
in chat_template.jinja alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dami_merge.build.old_spellings import PARTS, flat_text_config, old_spellings
from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.templates import TEMPLATE_FILE

__all__ = ["unreadable"]


def unreadable(variant: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield (file, what is wrong) for everything that 4.51 would misread in a local checkpoint."""
    yield from (("config.json", text) for text in _config(variant.config))
    tokenizer = variant.read_json("tokenizer_config.json")
    if tokenizer is not None:
        yield from (("tokenizer_config.json", text) for text in _tokenizer(tokenizer))
    separate = variant.read_text(TEMPLATE_FILE)
    inside = (tokenizer or {}).get("chat_template")
    if separate is not None and inside is None:
        yield TEMPLATE_FILE, "the chat template is missing in tokenizer_config.json, the only place where 4.51 looks"
    elif separate is not None and inside != separate:
        yield (
            TEMPLATE_FILE,
            "differs from the template in tokenizer_config.json: 4.51 and 5 would use different ones",
        )


def _config(config: Mapping[str, Any]) -> Iterator[str]:
    yield from _part(config, "", {**old_spellings(config), **flat_text_config(config)})
    for key in PARTS:
        part = config.get(key)
        if isinstance(part, Mapping):
            yield from _part(part, f"{key}: ", old_spellings(part))
    if "torch_dtype" not in config and "dtype" not in config:
        yield "torch_dtype is absent: 4.51 would load the weights as float32"


def _part(part: Mapping[str, Any], where: str, expected: Mapping[str, Any]) -> Iterator[str]:
    for key, value in expected.items():
        if part.get(key) != value:
            found = part.get(key, "absent")
            yield f"{where}{key} is {found}, the only place where 4.51 looks; Transformers 5 reads {value}"
    if "dtype" in part and part.get("torch_dtype") != part["dtype"] and where in ("", "text_config: "):
        yield f"{where}dtype is {part['dtype']}, torch_dtype {part.get('torch_dtype', 'absent')}: 4.51 reads the latter"


def _tokenizer(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("tokenizer_class") == "TokenizersBackend":
        yield "tokenizer_class TokenizersBackend is unknown to 4.51; expected PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        yield "extra_special_tokens is a list; 4.51 expects additional_special_tokens and stops at it"
