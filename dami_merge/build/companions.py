"""The small files of a variant: config, tokenizer, chat template, generation config.

They are the Instruct endpoint's own, with the template and the sampling defaults that the
recipe asks for. Files saved by Transformers 5 are made readable for the Transformers 4.51 of
TGI, which would otherwise misread them without a word: `rope_theta` and `torch_dtype` at the
top level, a tokenizer class that it knows, the template inside tokenizer_config.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dami_merge.checkpoint import Checkpoint
from dami_router.errors import CheckpointError
from dami_router.family import ChatTemplate, Sampling

__all__ = [
    "TEMPLATE_FILE", "Companions", "make_companions", "opens_think", "sampling_of", "template_of", "template_sha256",
]  # fmt: skip

TEMPLATE_FILE = "chat_template.jinja"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_GENERATION_CONFIG = "generation_config.json"
_COPIED = (
    "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "tekken.json", "special_tokens_map.json", "added_tokens.json",
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt",
)  # fmt: skip
_MAX_BYTES = 256 << 20
_SAMPLING = (
    "do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "max_new_tokens",
)  # fmt: skip
_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}

Side = Literal["instruct", "thinking"]


@dataclass(frozen=True)
class Companions:
    """A variant's small files by name, and what the manifest says about them."""

    files: Mapping[str, bytes]
    chat_template: ChatTemplate
    sampling: Sampling


def make_companions(
    instruct: Checkpoint, thinking: Checkpoint, *, dtype: str, thinking_template: bool, thinking_sampling: bool
) -> Companions:
    """Make the small files of one variant from two local endpoints.

    `dtype` is the variant's, in safetensors' spelling. A side that lacks a template or a
    generation_config.json is stood in for by the other.
    """
    files = {name: data for name in _COPIED if (data := _read(instruct, name)) is not None}
    files["config.json"] = _json(_config(instruct.config, _TORCH_NAMES.get(dtype, "float32")))
    template, template_side = _pick(instruct, thinking, thinking_template, template_of)
    _put_tokenizer(files, instruct, template)
    generation, sampling_side = _pick(instruct, thinking, thinking_sampling, _generation)
    if generation is not None:
        files[_GENERATION_CONFIG] = generation
    return Companions(
        dict(sorted(files.items())),
        ChatTemplate(
            source=template_side or "instruct", sha256=template_sha256(template), opens_think=opens_think(template)
        ),
        Sampling(source=sampling_side, values=_sampling(generation)),
    )


def template_of(side: Checkpoint) -> Any:
    """Return an endpoint's chat template (text, or a list of named ones), as Transformers 5 finds it; else None."""
    text = side.read_text(TEMPLATE_FILE)
    if text is not None:
        return text
    for name in (_TOKENIZER_CONFIG, "chat_template.json"):
        template = (side.read_json(name) or {}).get("chat_template")
        if isinstance(template, str | list):
            return template
    return None


def sampling_of(side: Checkpoint) -> dict[str, bool | int | float | None] | None:
    """Return the sampling defaults of an endpoint's generation_config.json, or None where it has none."""
    generation = _generation(side)
    return None if generation is None else _sampling(generation)


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


def _pick(instruct: Checkpoint, thinking: Checkpoint, prefer_thinking: bool, read: Any) -> tuple[Any, Side | None]:
    order: list[tuple[Side, Checkpoint]] = [("instruct", instruct), ("thinking", thinking)]
    for name, side in reversed(order) if prefer_thinking else order:
        found = read(side)
        if found is not None:
            return found, name
    return None, None


def _config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    made = _readable_by_old(dict(config), dtype)
    # It names Python files, which a variant does not carry: no code comes along.
    made.pop("auto_map", None)
    made.pop("_name_or_path", None)
    if isinstance(made.get("text_config"), Mapping):
        made["text_config"] = _readable_by_old(dict(made["text_config"]), dtype)
    return made


def _readable_by_old(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    rope = config.get("rope_parameters")
    if isinstance(rope, Mapping) and "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        config["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
    config["torch_dtype"] = dtype
    if "dtype" in config:
        config["dtype"] = dtype
    return config


def _put_tokenizer(files: dict[str, bytes], instruct: Checkpoint, template: Any) -> None:
    config = instruct.read_json(_TOKENIZER_CONFIG)
    if config is None and template is None:
        return
    made = dict(config or {})
    made.pop("auto_map", None)
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
    original = _read(instruct, _TOKENIZER_CONFIG) if same else None
    files[_TOKENIZER_CONFIG] = original if original is not None else _json(made)


def _generation(side: Checkpoint) -> bytes | None:
    side.read_json(_GENERATION_CONFIG)  # refuses what is no JSON object
    return _read(side, _GENERATION_CONFIG)


def _sampling(generation: bytes | None) -> dict[str, bool | int | float | None]:
    data = json.loads(generation) if generation is not None else {}
    return {key: data[key] for key in _SAMPLING if isinstance(data.get(key), bool | int | float)}


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=2) + "\n").encode()


def _read(side: Checkpoint, name: str) -> bytes | None:
    assert side.folder is not None
    path = side.folder / name
    if not path.is_file():
        return None
    if not _stays_inside(path, side.folder):
        raise CheckpointError(
            f"{side.ref}: {name} is a link to {path.resolve()}, outside the checkpoint's folder",
            hint="put a copy of the file there",
        )
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{side.ref}: {name} is larger than {_MAX_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{side.ref}: {name} cannot be read: {error.strerror}") from None


def _stays_inside(path: Path, folder: Path) -> bool:
    target = path.resolve()
    if target.is_relative_to(folder.resolve()):
        return True
    # The Hub's cache keeps the files of a snapshot as links into its repository's `blobs`.
    cache = folder.resolve().parent.parent
    return folder.resolve().parent.name == "snapshots" and target.is_relative_to(cache / "blobs")
