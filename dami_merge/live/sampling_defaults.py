"""The sampling settings of an endpoint's generation_config.json, and those that the engine does not support."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.templates import GENERATION_CONFIG, sampling_of
from dami_merge.live.generation import Generation
from dami_router.errors import MisuseError

__all__ = ["SamplingDefaults", "read_defaults"]

_WARPERS = ("temperature", "top_p", "top_k", "min_p", "typical_p")
"""Settings that count only with `do_sample: true`, as in Transformers."""
_ALWAYS = ("repetition_penalty", "presence_penalty", "frequency_penalty", "max_new_tokens")
_HARMLESS = frozenset({
    "_from_model_config", "assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind",
    "bos_token_id", "cache_config", "cache_implementation", "compile_config", "decoder_start_token_id",
    "disable_compile", "do_sample", "eos_token_id", "is_assistant", "low_memory", "max_length",
    "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "output_attentions",
    "output_hidden_states", "output_logits", "output_scores", "pad_token_id", "prefill_chunk_size",
    "prompt_lookup_num_tokens", "remove_invalid_values", "renormalize_logits", "return_dict_in_generate",
    "return_legacy_cache", "target_lookbehind", "transformers_version", "trust_remote_code", "use_cache",
    "use_model_defaults",
})  # fmt: skip
"""Settings that do not change an answer, or are read elsewhere."""
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "diversity_penalty": (0,), "dola_layers": (), "early_stopping": (False,), "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,), "epsilon_cutoff": (0,), "eta_cutoff": (0,), "guidance_scale": (1,),
    "length_penalty": (1, 0), "min_length": (0,), "min_new_tokens": (0,), "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,), "num_beams": (1,), "num_return_sequences": (1,), "penalty_alpha": (0,),
    "token_healing": (False,),
}  # fmt: skip
"""Values that have no effect. A setting in none of these tables is reported, whatever its value."""


@dataclass(frozen=True)
class SamplingDefaults:
    """Sampling settings for requests that do not set them, by their names in `Generation`, and warnings."""

    values: Mapping[str, float]
    warnings: tuple[str, ...] = field(default=())


def read_defaults(side: Checkpoint) -> SamplingDefaults | None:
    """Return a local endpoint's sampling defaults, greedy by default; None if it has no generation_config.json."""
    found = sampling_of(side)
    if found is None:
        return None
    sampled = found.get("do_sample") is True
    names = (*_WARPERS, *_ALWAYS) if sampled else _ALWAYS
    values: dict[str, Any] = {"temperature": 1.0} if sampled else {"temperature": 0.0}
    warnings = []
    for name in names:
        value = found.get(name)
        if value is not None:
            try:
                values[name] = _checked(name, value)
            except MisuseError as error:
                warnings.append(f"{side.ref}: {GENERATION_CONFIG}: {error.message}; the setting is ignored")
    if unsupported := _unsupported(side.read_json(GENERATION_CONFIG) or {}):
        shown = ", ".join(f"`{name:.40}`" for name in unsupported)
        warnings.append(f"{side.ref}: {GENERATION_CONFIG} sets {shown}, which `dami live` does not support and ignores")
    return SamplingDefaults(values, tuple(warnings))


def _checked(name: str, value: Any) -> float:
    if name == "top_k" and value == -1:
        return 0
    if name == "top_k" and isinstance(value, float) and value.is_integer():
        value = int(value)
    # `Generation` checks types and ranges.
    Generation([0], 0.0, **{name: value})
    number: float = value
    return number


def _unsupported(data: Mapping[str, Any]) -> list[str]:
    """Return the settings that the engine does not support, and those that should be numbers and are not."""
    found = []
    for name, value in data.items():
        supported = name in _WARPERS or name in _ALWAYS
        neutral = value in (None, [], {}) or value in _NEUTRAL.get(name, ())
        if not (neutral or name in _HARMLESS or (supported and isinstance(value, int | float))):
            found.append(name)
    return found
