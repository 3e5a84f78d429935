"""Settings of config.json that change what the weights compute, held against each other wherever they stand.

Everything counts unless it is known not to: a setting of an architecture to come is compared too.
Where the two files are spelt differently (`rope_theta` and `rope_parameters`, a default that one
leaves out), Transformers' own config class reads both.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["SettingDifference", "as_transformers_reads_it", "differing_settings"]

# Names, training, output and housekeeping. The head and the vocabulary's size are compared by their tensors.
_IRRELEVANT = re.compile(
    r"^(?:architectures|auto_map|_?name_or_path|_commit_hash|hf_.*|transformers_version|transformers\.js_config|unsloth.*"
    r"|use_unsloth.*|torch_dtype|dtype|torchscript|pretraining_tp|ep_size|keys_to_ignore.*|quantization_config"
    r"|_?attn_implementation.*|_experts_implementation.*|use_cache|use_mamba_kernels|output_.*|return_dict.*"
    r"|(?:bos|eos|pad|sep|cls|mask|decoder_start|forced_bos|forced_eos)_token(?:_id)?|id2label|label2id|num_labels"
    r"|problem_type|task_specific_params|finetuning_task|prefix|temperature|top_[kp]|do_sample|max_length|min_length"
    r"|num_beams|repetition_penalty|initializer_(?:range|factor)|embedding_initializer_range|.*drop(?:out|_?path).*"
    r"|layerdrop|.*aux_loss.*|.*z_loss.*|seq_aux|router_jitter_noise|gradient_checkpointing|chunk_size_feed_forward"
    r"|is_decoder|is_encoder_decoder|add_cross_attention|cross_attention_hidden_size|_sliding_window_pattern"
    r"|tie_(?:word_)?embeddings?|vocab_size)$"
)
_HEADS = re.compile(r"(?:^|[._])heads?$|head_(?:dim|size)$")  # num_attention_heads, linear_key_head_dim, mamba_d_head
_ROPE = ("rope_parameters", "rope_theta", "rope_scaling", "rope_local_base_freq")


@dataclass(frozen=True)
class SettingDifference:
    """A setting by its dotted place, with both values; None where a side does not have it."""

    place: str
    instruct: Any
    thinking: Any

    @property
    def of_heads(self) -> bool:
        """Whether both sides state the number or size of heads: the same rows of a matrix are then other heads."""
        sizes = [x for x in (self.instruct, self.thinking) if isinstance(x, int) and not isinstance(x, bool)]
        return len(sizes) == 2 and _HEADS.search(self.place) is not None


def differing_settings(instruct: Mapping[str, Any], thinking: Mapping[str, Any]) -> list[SettingDifference]:
    """Return every setting in which two configs of one architecture compute differently, by place."""
    plain = _settings(instruct), _settings(thinking)
    if plain[0] == plain[1]:
        return []
    read = as_transformers_reads_it(instruct), as_transformers_reads_it(thinking)
    if read[0] is not None and read[1] is not None:
        plain = _settings(read[0].to_dict()), _settings(read[1].to_dict())
    places = sorted(plain[0].keys() | plain[1].keys())
    found = [SettingDifference(place, *(side.get(place) for side in plain)) for place in places]
    return [one for one in found if not _same(one.instruct, one.thinking)]


def as_transformers_reads_it(config: Mapping[str, Any]) -> Any:
    """Return Transformers' own config of a config.json, defaults filled in; None where it has none or refuses it.

    No code that the config names is run.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.utils import logging

    said = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        known = copy.deepcopy({key: value for key, value in config.items() if key != "auto_map"})
        return CONFIG_MAPPING[str(config.get("model_type"))].from_dict(known)
    except Exception:  # a config is untrusted: Transformers may fail on it anywhere
        return None
    finally:
        logging.set_verbosity(said)


def _same(a: Any, b: Any) -> bool:
    # Null, false and empty say "without", as does a missing setting of a class that Transformers does not know.
    return bool(a == b) or all(value is None or value is False or value in ([], "") for value in (a, b))


def _settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a config: dotted place → value, without what changes nothing."""
    text = config.get("text_config")
    repeated = isinstance(text, Mapping) and _rope(text) == _rope(config)
    found = {} if repeated else _flat(_rope(config), prefix)
    for key, value in _without_rope(config).items():
        if _IRRELEVANT.match(str(key)):
            continue
        if isinstance(value, Mapping):
            found |= _settings(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _without_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    text = config.get("text_config")
    inner = text if isinstance(text, Mapping) else {}
    left = {key: value for key, value in config.items() if key not in _ROPE}
    # Variants repeat text settings at the top for old readers; layer types say all that a pattern says.
    left = {key: value for key, value in left.items() if key not in inner or inner[key] != value}
    if "layer_types" in left:
        left.pop("sliding_window_pattern", None)
    if config.get("use_sliding_window") is False:
        for key in ("sliding_window", "max_window_layers"):
            left.pop(key, None)
    return left


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary settings in Transformers 5's form, from that or from the older one."""
    if not any(config.get(key) is not None for key in _ROPE):
        return {}
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    if isinstance(new, Mapping) and any(isinstance(value, Mapping) for value in new.values()):
        return {"rope_parameters": {key: _one_rope(value) for key, value in new.items() if isinstance(value, Mapping)}}
    made = dict(new) if isinstance(new, Mapping) else dict(old) if isinstance(old, Mapping) else {}
    if config.get("rope_theta") is not None:
        made.setdefault("rope_theta", config["rope_theta"])
    if config.get("rope_local_base_freq") is not None:
        local = {"rope_theta": config["rope_local_base_freq"]}
        return {"rope_parameters": {"full_attention": _one_rope(made), "sliding_attention": _one_rope(local)}}
    return {"rope_parameters": _one_rope(made)}


def _one_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    made = {key: value for key, value in rope.items() if key != "type"}
    kind = rope.get("rope_type", rope.get("type", "default"))
    return made | {"rope_type": None if kind == "default" else kind}
