"""The small files of a variant: config, tokenizer, chat template, generation config.

They are the Instruct endpoint's own, with the template and the sampling defaults that the
recipe asks for. Files saved by Transformers 5 are made readable for the Transformers 4.51 of
TGI, which would otherwise misread them without a word: `rope_theta` and `torch_dtype` at the
top level, a tokenizer class that it knows, the template inside tokenizer_config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dami_merge.build.old_spellings import PARTS, flat_text_config, old_spellings
from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.custom_code import AUTO_MAP, code_files
from dami_merge.checkpoints.small_files import read_small_file
from dami_merge.checkpoints.templates import (
    GENERATION_CONFIG,
    TEMPLATE_FILE,
    TOKENIZER_CONFIG,
    generation_of,
    opens_think,
    read_sampling,
    template_of,
    template_sha256,
)
from dami_merge.checkpoints.tying import untied as untied_config
from dami_router.manifest.family import ChatTemplate, Sampling

__all__ = ["Companions", "make_companions", "readable_config"]

_COPIED = (
    "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "tekken.json", "special_tokens_map.json", "added_tokens.json",
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt",
)  # fmt: skip
_PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}

Side = Literal["instruct", "thinking"]


@dataclass(frozen=True)
class Companions:
    """A variant's small files by name, and what the manifest says about them."""

    files: Mapping[str, bytes]
    chat_template: ChatTemplate
    sampling: Sampling


def make_companions(
    instruct: Checkpoint,
    thinking: Checkpoint,
    *,
    dtype: str,
    untied: bool,
    thinking_template: bool,
    thinking_sampling: bool,
    with_code: bool = False,
) -> Companions:
    """Make the small files of one variant from two local endpoints.

    `dtype` is the variant's, in safetensors' spelling; `untied` says that it stores a head of its own.
    Where a side lacks a template or a generation_config.json, the variant falls back to the other's.
    `with_code` copies Instruct's Python files, unread, and keeps the `auto_map` entries that name them.
    """
    files = {name: data for name in _COPIED if (data := read_small_file(instruct, name)) is not None}
    config = untied_config(instruct.config) if untied else instruct.config
    files["config.json"] = _json(readable_config(config, _TORCH_NAMES.get(dtype, "float32"), with_code))
    if with_code:
        files |= code_files(instruct)
    else:
        files |= {name: _without_code(files[name]) for name in _PROCESSORS if name in files}
    template, template_side = _pick(instruct, thinking, thinking_template, template_of)
    _put_tokenizer(files, instruct, template, with_code)
    generation, sampling_side = _pick(instruct, thinking, thinking_sampling, generation_of)
    if generation is not None:
        files[GENERATION_CONFIG] = generation
    return Companions(
        dict(sorted(files.items())),
        ChatTemplate(
            source=template_side or "instruct", sha256=template_sha256(template), opens_think=opens_think(template)
        ),
        Sampling(source=sampling_side, values=read_sampling(generation)),
    )


def _pick(instruct: Checkpoint, thinking: Checkpoint, prefer_thinking: bool, read: Any) -> tuple[Any, Side | None]:
    order: list[tuple[Side, Checkpoint]] = [("instruct", instruct), ("thinking", thinking)]
    for name, side in reversed(order) if prefer_thinking else order:
        found = read(side)
        if found is not None:
            return found, name
    return None, None


def readable_config(config: Mapping[str, Any], dtype: str, with_code: bool = False) -> dict[str, Any]:
    """Return a variant's config.json: an endpoint's, with the variant's dtype, readable by Transformers 4.51 too."""
    made = _readable_by_old(dict(config), dtype)
    if not with_code:
        made.pop(AUTO_MAP, None)
    made.pop("quantization_config", None)  # fp8 endpoints are read as bf16
    made.pop("_name_or_path", None)
    for key in PARTS:
        if isinstance(made.get(key), Mapping):
            made[key] = _readable_by_old(dict(made[key]), dtype if key == "text_config" else None)
    return flat_text_config(made) | made


def _readable_by_old(config: dict[str, Any], dtype: str | None) -> dict[str, Any]:
    config |= old_spellings(config)
    if dtype is not None:
        config["torch_dtype"] = dtype
        if "dtype" in config:
            config["dtype"] = dtype
    return config


def _put_tokenizer(files: dict[str, bytes], instruct: Checkpoint, template: Any, with_code: bool) -> None:
    config = instruct.read_json(TOKENIZER_CONFIG)
    if config is None and template is None:
        return
    made = dict(config or {})
    if not with_code:
        made.pop(AUTO_MAP, None)
    if made.get("tokenizer_class") in ("TokenizersBackend", None):
        made["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(made.get("extra_special_tokens"), list):
        # Transformers 5's spelling; 4.51 expects a mapping there and stops at a list.
        extra = made.pop("extra_special_tokens")
        made.setdefault("additional_special_tokens", extra)
    if template is not None:
        made["chat_template"] = template
        if isinstance(template, str):
            files[TEMPLATE_FILE] = template.encode()
    same = made == config
    original = read_small_file(instruct, TOKENIZER_CONFIG) if same else None
    files[TOKENIZER_CONFIG] = original if original is not None else _json(made)


def _without_code(content: bytes) -> bytes:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return content
    if not isinstance(data, dict) or AUTO_MAP not in data:
        return content
    return _json({key: value for key, value in data.items() if key != AUTO_MAP})


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=2) + "\n").encode()
