"""What Transformers 4.51, which TGI pins, must find in a config.json to read it as Transformers 5 does.

Transformers 5 keeps rotary settings in `rope_parameters`, one entry for each type of layer where
those differ, and layer types in a list. 4.51 overlooks both without a word and takes its defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["PARTS", "flat_text_config", "old_spellings"]

PARTS = ("text_config", "vision_config", "audio_config", "thinker_config")
"""Parts of a config that have settings of their own."""

_KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "mrope")
_FLAT = ("qwen2_vl", "qwen2_5_vl")


def old_spellings(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of one part of a config (its top level, `text_config`, …) in 4.51's spelling."""
    found = _rope(part.get("rope_parameters")) | _pattern(part)
    if part.get("model_type") == "qwen3_moe" and "num_local_experts" in part:
        found["num_experts"] = part["num_local_experts"]
    return found


def flat_text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the text settings that 4.51 expects at the top level of the first vision-language models' configs."""
    text = config.get("text_config")
    if config.get("model_type") not in _FLAT or not isinstance(text, Mapping):
        return {}
    left = ("model_type", "architectures", "dtype", "torch_dtype", "tie_word_embeddings", "_name_or_path")
    return {key: value for key, value in text.items() if key not in (*left, *config)}


def _rope(rope: Any) -> dict[str, Any]:
    if not isinstance(rope, Mapping):
        return {}
    found: dict[str, Any] = {}
    full, sliding = rope.get("full_attention"), rope.get("sliding_attention")
    if isinstance(full, Mapping) and isinstance(sliding, Mapping):
        rope = full
        if "rope_theta" in sliding:
            found["rope_local_base_freq"] = sliding["rope_theta"]
    if "rope_theta" not in rope:
        return found
    found["rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        found["partial_rotary_factor"] = rope["partial_rotary_factor"]
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in _KINDS:
        return found  # of a vision tower, which 4.51 computes without settings
    return found | {"rope_scaling": None if kind == "default" and set(scaling) <= {"rope_type", "type"} else scaling}


def _pattern(part: Mapping[str, Any]) -> dict[str, Any]:
    types = part.get("layer_types")
    if "sliding_window_pattern" in part or not isinstance(types, list) or set(types) != {_FULL, _SLIDING}:
        return {}
    every = types.index(_FULL) + 1
    if all((kind == _FULL) == ((i + 1) % every == 0) for i, kind in enumerate(types)):
        return {"sliding_window_pattern": every}
    return {}


_FULL, _SLIDING = "full_attention", "sliding_attention"
