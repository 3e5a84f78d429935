"""The lab's tokenizer: 22 tokens, one per character, in files that both Transformers 4.51 and 5 read.

Transformers 4.51 (which TGI pins) does not support ``TokenizersBackend`` and ``chat_template.jinja``: so the class is
``PreTrainedTokenizerFast`` and the template is in ``tokenizer_config.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dami_merge.lab.task import DIGITS, OPERATORS, THINK_CLOSE, THINK_OPEN

__all__ = ["BOS", "CHAT_TEMPLATE", "EOS", "TOKENS", "UNK", "encode", "write_tokenizer"]

BOS, EOS, UNK = "<bos>", "<eos>", "<unk>"
TOKENS: tuple[str, ...] = (UNK, BOS, EOS, THINK_OPEN, THINK_CLOSE, *DIGITS, *OPERATORS, "=", ";", "|")
_IDS = {token: i for i, token in enumerate(TOKENS)}
_SPECIAL = (UNK, BOS, EOS)

# The same prompt at every λ: only the weights decide how hard the model thinks.
CHAT_TEMPLATE = (
    "{{ bos_token }}{%- set ns = namespace(text='') -%}"
    "{%- for message in messages -%}{%- if message['role'] == 'user' -%}"
    "{%- set ns.text = message['content'] -%}{%- endif -%}{%- endfor -%}"
    "{{ ns.text }}"
)


def encode(text: str) -> list[int]:
    """Return the token ids of a text as the shipped tokenizer does, without ``<bos>``; needs no tokenizer library."""
    ids, at = [], 0
    while at < len(text):
        name = next((t for t in TOKENS[:5] if text.startswith(t, at)), text[at])
        ids.append(_IDS.get(name, _IDS[UNK]))
        at += len(name)
    return ids


def write_tokenizer(directory: Path) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``special_tokens_map.json`` into a directory."""
    files = {
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": _tokenizer_config(),
        "special_tokens_map.json": _special_tokens(),
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _tokenizer() -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": _IDS[t], **_added_token(t)} for t in TOKENS[:5]],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "."},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": _IDS, "unk_token": UNK},
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": {str(_IDS[t]): _added_token(t) for t in TOKENS[:5]},
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        # Without it Transformers 4.51 adds token_type_ids, which Qwen3 refuses.
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 256,
        **_special_tokens(),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _special_tokens() -> dict[str, str]:
    return {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": UNK}


def _added_token(token: str) -> dict[str, Any]:
    # The think tags are not special tokens (as in Qwen3), so that servers keep them in the returned text.
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": token, **flags, "special": token in _SPECIAL}
