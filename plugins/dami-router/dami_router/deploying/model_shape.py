"""What decides how much memory a variant needs: parameters, dtype, and the size of one token in the KV cache.

Parameters and dtype are in the manifest. The rest is in the variant's `config.json`, from the folder beside the
manifest or from the Hub.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dami_router.errors import CheckpointError
from dami_router.manifest.family import Family, Variant
from dami_router.manifest.hub_errors import told
from dami_router.manifest.published import hub_api

__all__ = ["ModelShape", "cached_numbers", "read_config"]

_CONFIG = "config.json"
_MAX_BYTES = 1 << 20
_BYTES = {"F64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1}
_CACHE_BYTES = {"F64": 4, "F32": 4}
"""The servers keep keys and values in the dtype of the activations: 2 bytes for every other dtype of weights."""

_Q8_BLOCK = 34
"""Bytes of 32 weights in q8_0: 32 of 8 bits, and a scale of 16."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one variant: `weights` in bytes, `token` in bytes of keys and values, `context` in tokens.

    `heads` and `kv_heads` limit over how many GPUs a server can split it.
    """

    weights: int
    token: int
    context: int
    heads: int
    kv_heads: int

    @classmethod
    def of(cls, family: Family, config: Mapping[str, Any], *, quantized: bool = False) -> ModelShape:
        """Return the shape that a manifest and a config.json give; raises CheckpointError where a size is missing.

        `quantized`: weights in llama.cpp's q8_0, keys and values in its 16 bits.
        """
        endpoint = family.endpoints.instruct
        bytes_each = _BYTES.get(endpoint.dtype.upper())
        if bytes_each is None:
            raise CheckpointError(f"{family.name}: the size of dtype {endpoint.dtype:.40} is not known")
        inner = config.get("text_config")
        text: Mapping[str, Any] = inner if isinstance(inner, dict) else config
        heads = _size(text, "num_attention_heads")
        kv_heads = _size(text, "num_key_value_heads", heads)
        each = 2 if quantized else _CACHE_BYTES.get(endpoint.dtype.upper(), 2)
        weights = endpoint.parameters * (_Q8_BLOCK if quantized else bytes_each * 32) // 32
        return cls(
            weights=weights,
            token=cached_numbers(text) * each,
            context=_size(text, "max_position_embeddings"),
            heads=heads,
            kv_heads=kv_heads,
        )


def read_config(family: Family, variant: Variant, folder: Path | None) -> Mapping[str, Any]:
    """Return a variant's config.json, from the family's folder if there is one, else from the Hub.

    Raises CheckpointError where it cannot be read, FailureError where the Hub cannot give it.
    """
    try:
        path = folder / variant.folder / _CONFIG if folder else None
        if path is None or (variant.hub and not path.parent.is_dir()):
            path = _fetched(variant)
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path}: larger than {_MAX_BYTES >> 20} MiB; expected a model's config")
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{family.name}: {variant.id} has no readable {_CONFIG}: {error.strerror}", hint="`dami verify` checks it"
        ) from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{family.name}: {_CONFIG} of {variant.id} is not valid JSON") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{family.name}: {_CONFIG} of {variant.id} is not an object")
    return config


def _fetched(variant: Variant) -> Path:
    assert variant.hub is not None
    api = hub_api()
    try:
        return Path(api.hf_hub_download(variant.hub.repo, _CONFIG, revision=variant.hub.revision))
    except Exception as error:
        raise told(error, variant.hub.repo) from None


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31:
        return value
    raise CheckpointError(f"{_CONFIG}: expected {key} as a whole number above 0, found {value!r:.40}")


def cached_numbers(config: Mapping[str, Any]) -> int:
    """Return how many numbers the layers of a config.json keep for one token.

    Layers with a state of fixed size keep none; a sliding window counts as full attention, an upper bound.
    """
    layers, heads = _size(config, "num_hidden_layers"), _size(config, "num_attention_heads")
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        layers = sum("attention" in str(kind) and "linear" not in str(kind) for kind in kinds)
    if "kv_lora_rank" in config:  # latent attention keeps one compressed vector for all heads
        return layers * (_size(config, "kv_lora_rank") + _size(config, "qk_rope_head_dim"))
    width = config.get("head_dim") or _size(config, "hidden_size") // heads
    return layers * 2 * _size(config, "num_key_value_heads", heads) * _size({"head_dim": width}, "head_dim")
