"""Which kind of module a tensor belongs to, from its name."""

from __future__ import annotations

import re

__all__ = ["module_of"]

_MODULES = (
    ("norm", re.compile(r"layernorm|layer_norm|ln_\d|\.norm\b|^norm\b")),
    ("attention", re.compile(r"attn|attention")),
    ("mlp", re.compile(r"mlp|ffn|feed_forward|experts|block_sparse_moe|\.fc\d|dense_")),
    ("embeddings", re.compile(r"embed(?!_out\b)|\bw[tp]e\b")),
    ("head", re.compile(r"lm_head|embed_out|\boutput\.weight$")),
)


def module_of(name: str) -> str:
    """Return norm, attention, mlp, embeddings, head or other."""
    return next((label for label, pattern in _MODULES if pattern.search(name)), "other")
