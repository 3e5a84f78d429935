"""Which models share one tensor between embeddings and head, as Transformers decides it when it loads.

Transformers 5.23 reads `tie_word_embeddings` from the config of the class that has the head: the
top level, into which some classes forward the value of `text_config`. It then ties only where at
most one of the two tensors is stored, or both are equal. A stored head that differs from the
embeddings stays; other loaders (vLLM, Transformers 4) would drop it, so a variant with such a head
says `tie_word_embeddings: false` everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dami_merge.checkpoints.config_comparison import as_transformers_reads_it

__all__ = ["embeddings_of", "heads", "ties", "untied"]

_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|head)\.weight$|^output\.weight$")
_EMBEDDINGS = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|tok_embeddings|word_embeddings|embed_in)\.weight$|^backbone\.embeddings\.weight$"
)
# Layers, draft layers (multi-token prediction) and speech parts have heads and embeddings of their own.
_NOT_THE_MODELS = re.compile(r"\.\d+\.|(?:^|\.)(?:mtp|talker|code_predictor|codec|shared_head)\b")
_NESTED = ("text_config", "llm_config", "language_config")
_FLAGS = ("tie_word_embeddings", "tie_embedding")


def heads(names: Iterable[str]) -> list[str]:
    """Return the names that are a language model's head."""
    return [name for name in names if _HEAD.search(name) and not _NOT_THE_MODELS.search(name)]


def embeddings_of(names: Iterable[str], head: str = "lm_head.weight") -> str | None:
    """Return the name of the embeddings that a head is tied to, or None where there are none."""
    found = [name for name in names if _EMBEDDINGS.search(name) and not _NOT_THE_MODELS.search(name)]
    # `thinker.lm_head` goes with `thinker.model.embed_tokens`.
    return max(found, key=lambda name: (_shared(name, head), -len(name)), default=None)


def ties(config: Mapping[str, Any]) -> bool:
    """Tell whether Transformers ties the head of a model with this config.json to its embeddings.

    Where the flag is at the top of a flat config, that is the answer. Otherwise Transformers' own
    config class is asked, and for a model that it does not know, the first flag found.
    """
    flags = [flag for key in _FLAGS if isinstance(flag := config.get(key), bool)]
    nested = [part for key in _NESTED if isinstance(part := config.get(key), Mapping)]
    if len(flags) == 1 and not nested:
        return flags[0]
    known = as_transformers_reads_it(config)
    if known is not None:
        return bool(getattr(known, "tie_word_embeddings", False))
    inner = [flag for part in nested for key in _FLAGS if isinstance(flag := part.get(key), bool)]
    return next(iter([*flags, *inner]), False)


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with every flag saying that head and embeddings are two tensors."""
    made = dict(config)
    for part in _NESTED:
        if isinstance(made.get(part), Mapping):
            made[part] = dict(made[part]) | {key: False for key in _FLAGS if made[part].get(key)}
    # Where no flag stands, a class may tie by default.
    return made | {key: False for key in _FLAGS if made.get(key)} | {"tie_word_embeddings": False}


def _shared(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
