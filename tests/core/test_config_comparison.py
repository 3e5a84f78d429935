"""Settings that change what weights compute are compared wherever they stand; spellings are not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from dami_merge.checkpoints.config_comparison import differing_settings

TEXT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "vocab_size": 40,
}  # fmt: skip
QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "rope_theta": 5e6, "rms_norm_eps": 1e-6, **TEXT}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
GEMMA = {
    "model_type": "gemma3_text", **TEXT, "num_hidden_layers": 6, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window": 512, "sliding_window_pattern": 6,
}  # fmt: skip
VISION = {
    "model_type": "qwen3_vl", "text_config": {**TEXT, "rope_theta": 5e6, "rope_scaling": {"mrope_section": [2, 1, 1]}},
    "vision_config": {"hidden_size": 32, "depth": 2, "num_heads": 4, "patch_size": 4},
}  # fmt: skip
DEEPSEEK = {
    "model_type": "deepseek_v3", "n_routed_experts": 4, "num_experts_per_tok": 2, "hidden_size": 32,
    "rope_theta": 10000, "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
}  # fmt: skip
STRANGE = {"model_type": "strange", "text_config": {"rope_theta": 1e4, "attn_logit_softcapping": 30.0}}
CONFIGS = {"qwen3": QWEN3, "gemma3": GEMMA, "vision": VISION, "deepseek": DEEPSEEK}


def places(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return [found.place for found in differing_settings(a, b)]


def changed(config: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(config)
    *outer, last = place.split(".")
    inner = made
    for key in outer:
        inner = inner.setdefault(key, {})
    inner[last] = value
    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_saved_again_is_the_same(name: str) -> None:
    """What Transformers 5 writes of an old config differs in many keys and in no setting."""
    saved = transformers.CONFIG_MAPPING[CONFIGS[name]["model_type"]].from_dict(copy.deepcopy(CONFIGS[name])).to_dict()
    assert saved.keys() != CONFIGS[name].keys()
    assert places(CONFIGS[name], saved) == []
    assert places(saved, CONFIGS[name]) == []


@pytest.mark.parametrize(
    ("config", "place", "value", "told"),
    [
        (QWEN3, "rope_theta", 1e6, "rope_parameters.rope_theta"),
        (QWEN3, "rope_scaling", YARN, "rope_parameters.factor"),
        (QWEN3, "rope_parameters", {"rope_type": "default", "rope_theta": 1e4}, "rope_parameters.rope_theta"),
        (QWEN3, "rms_norm_eps", 1e-5, "rms_norm_eps"),
        (QWEN3, "num_attention_heads", 2, "num_attention_heads"),
        (QWEN3, "num_key_value_heads", 1, "num_key_value_heads"),
        (QWEN3, "head_dim", 16, "head_dim"),
        (QWEN3, "hidden_act", "gelu", "hidden_act"),
        (QWEN3, "attention_bias", True, "attention_bias"),
        (QWEN3, "layer_types", ["full_attention", "sliding_attention"], "layer_types"),
        (QWEN3, "max_position_embeddings", 4096, "max_position_embeddings"),
        (GEMMA, "sliding_window", 1024, "sliding_window"),
        (GEMMA, "rope_local_base_freq", 2e4, "rope_parameters.sliding_attention.rope_theta"),
        (GEMMA, "final_logit_softcapping", 30.0, "final_logit_softcapping"),
        (GEMMA, "query_pre_attn_scalar", 8, "query_pre_attn_scalar"),
        (VISION, "text_config.rope_theta", 1e6, "text_config.rope_parameters.rope_theta"),
        (VISION, "vision_config.num_heads", 2, "vision_config.num_heads"),
        (VISION, "vision_config.patch_size", 8, "vision_config.patch_size"),
        (VISION, "image_token_id", 7, "image_token_id"),
        (DEEPSEEK, "num_experts_per_tok", 1, "num_experts_per_tok"),
        (DEEPSEEK, "routed_scaling_factor", 1.0, "routed_scaling_factor"),
        (DEEPSEEK, "norm_topk_prob", False, "norm_topk_prob"),
        (DEEPSEEK, "num_nextn_predict_layers", 2, "num_nextn_predict_layers"),
        (STRANGE, "text_config.attn_logit_softcapping", 50.0, "text_config.attn_logit_softcapping"),
        (STRANGE, "text_config.something_new", 3, "text_config.something_new"),
        (STRANGE, "text_config.rope_theta", 1e6, "text_config.rope_parameters.rope_theta"),
    ],
)  # fmt: skip
def test_settings_that_change_the_function_are_told(config: Any, place: str, value: Any, told: str) -> None:
    """Rope, norms, heads, activations, scaling, windows, experts, vision: a different value is named by its place."""
    other = changed(config, place, value)
    assert told in places(config, other)
    assert told in places(other, config)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("torch_dtype", "float32"), ("use_cache", False), ("transformers_version", "4.1"), ("eos_token_id", 3),
        ("attention_dropout", 0.1), ("initializer_range", 0.1), ("_name_or_path", "x"), ("tie_word_embeddings", True),
        ("rope_scaling", None), ("rope_parameters", {"rope_type": "default", "rope_theta": 5000000}),
        ("sliding_window", 4096), ("use_sliding_window", False), ("layer_types", ["full_attention"] * 2),
        ("hidden_act", "silu"), ("attention_bias", False), ("vocab_size", 64), ("auto_map", {"AutoModel": "x.Y"}),
    ],
)  # fmt: skip
def test_settings_that_change_nothing_are_not_told(place: str, value: Any) -> None:
    """Names, training, defaults written out, and a window that is switched off are no difference."""
    config = changed(QWEN3, "use_sliding_window", False) if place == "sliding_window" else QWEN3
    assert places(config, changed(config, place, value)) == []


@pytest.mark.parametrize(
    ("config", "place", "value"),
    [
        (QWEN3, "num_attention_heads", 2), (QWEN3, "num_key_value_heads", 1), (QWEN3, "head_dim", 16),
        (VISION, "vision_config.num_heads", 2), (DEEPSEEK, "v_head_dim", 64), (DEEPSEEK, "qk_nope_head_dim", 64),
        ({"model_type": "strange", "mamba_d_head": 64}, "mamba_d_head", 32),
        ({"model_type": "strange", "linear_num_key_heads": 4}, "linear_num_key_heads", 2),
    ],
)  # fmt: skip
def test_heads_are_no_mere_setting(config: Any, place: str, value: int) -> None:
    """Another number or size of heads divides the same rows in another way, in language and vision."""
    found = differing_settings(config, changed(config, place, value))
    assert place in [one.place for one in found if one.of_heads]


@pytest.mark.parametrize(
    ("config", "place", "value"),
    [
        (QWEN3, "rope_theta", 1e6), (QWEN3, "rms_norm_eps", 1e-5), (QWEN3, "layer_types", ["sliding_attention"] * 2),
        ({"model_type": "strange"}, "head_dim", 64), ({"model_type": "strange"}, "attention_gate_per_head", True),
    ],
)  # fmt: skip
def test_other_settings_and_defaults_that_one_side_leaves_out_are_no_heads(config: Any, place: str, value: Any) -> None:
    """A rotary base and a norm leave heads as they are; where one side does not state a size, nothing is known."""
    found = differing_settings(config, changed(config, place, value))
    assert found
    assert not [one for one in found if one.of_heads]


def test_old_and_new_rope_of_an_unknown_class_are_equal() -> None:
    """Where Transformers does not know the class, both spellings of the rotary settings are still one."""
    old = {"model_type": "strange", "rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}}
    new = {"model_type": "strange", "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}}
    assert places(old, new) == []
    assert places(old, changed(new, "rope_parameters.factor", 2.0)) == ["rope_parameters.factor"]


KEYS = st.sampled_from(["rope_theta", "rope_scaling", "rope_parameters", "text_config", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@given(a=st.dictionaries(st.sampled_from(["rope_theta", "rope_parameters", "text_config", "model_type", "y"]), JSON))
def test_any_config_can_be_compared(a: dict[str, Any]) -> None:
    """No config.json makes the comparison fail, and every config equals itself."""
    assert places(a, copy.deepcopy(a)) == []
    places(a, {})
