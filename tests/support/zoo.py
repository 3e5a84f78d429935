"""Shrunk random models of the architectures that public Instruct/Thinking pairs have, by Transformers' own classes.

Each kind is a config of a few layers, small enough that a pair is written in well under a second, with
what sets its architecture apart: experts, convolutions, state spaces, a vision tower, windows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["KINDS", "VOCABULARY", "random_model"]

VOCABULARY = 48

_DENSE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT: dict[str, Any] = {
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip
_IMAGE: dict[str, Any] = {
    "image_token_id": 3,
    "video_token_id": 4,
    "vision_start_token_id": 5,
    "vision_end_token_id": 6,
}


def _text(name: str, **more: Any) -> Callable[[Any, bool], Any]:
    """Return a maker of the config `{name}Config`: the dense settings with some changed or added."""

    def make(transformers: Any, tied: bool) -> Any:
        return getattr(transformers, f"{name}Config")(**(_DENSE | {"tie_word_embeddings": tied} | more))

    return make


def _qwen3_vl(name: str, **more: Any) -> Callable[[Any, bool], Any]:
    def make(transformers: Any, tied: bool) -> Any:
        vision = {
            "depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1, 2],
        }  # fmt: skip
        rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 5_000_000.0}
        text = _DENSE | {"rope_parameters": rope} | more
        config = getattr(transformers, f"{name}Config")
        return config(text_config=text, vision_config=vision, tie_word_embeddings=tied, **_IMAGE)

    return make


def _qwen2_5_vl(transformers: Any, tied: bool) -> Any:
    vision = {
        "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32,
        "patch_size": 4, "fullatt_block_indexes": [1], "window_size": 16,
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1_000_000.0}
    text = {k: v for k, v in _DENSE.items() if k != "head_dim"} | {"rope_parameters": rope}
    return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **_IMAGE)


def _qwen2_vl(transformers: Any, tied: bool) -> Any:
    vision = {
        "depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2,
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1_000_000.0}
    text = {k: v for k, v in _DENSE.items() if k != "head_dim"} | {"rope_parameters": rope}
    return transformers.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **_IMAGE)


def _mistral3(text_type: str) -> Callable[[Any, bool], Any]:
    def make(transformers: Any, tied: bool) -> Any:
        vision = {
            "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "head_dim": 8, "patch_size": 4, "image_size": 16,
        }  # fmt: skip
        text = _DENSE | {"model_type": text_type, "tie_word_embeddings": tied}
        return transformers.Mistral3Config(
            text_config=text, vision_config=vision, image_token_index=3, spatial_merge_size=2, tie_word_embeddings=tied
        )

    return make


def _qwen3_omni(transformers: Any, tied: bool) -> Any:
    vision = {
        "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    audio = {
        "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 8,
        "output_dim": 32, "downsample_hidden_size": 8, "max_source_positions": 32,
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1_000_000.0}
    text = _DENSE | _EXPERTS | {"rope_parameters": rope, "tie_word_embeddings": tied}
    small = {k: v for k, v in text.items() if not k.endswith("token_id")} | {"num_hidden_layers": 1}
    talker = {
        "text_config": small | {"shared_expert_intermediate_size": 16}, "num_code_groups": 2,
        "thinker_hidden_size": 32, "accept_hidden_layer": 1, "speaker_id": {}, "spatial_merge_size": 2,
        "code_predictor_config": {k: v for k, v in _DENSE.items() if not k.endswith("token_id")}
        | {"num_hidden_layers": 1, "num_code_groups": 2},
    }  # fmt: skip
    speech = {
        "codebook_size": 16, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 24, "num_hidden_layers": 1, "num_quantizers": 2, "upsample_rates": [2],
        "upsampling_ratios": [2], "decoder_dim": 16,
    }  # fmt: skip
    return transformers.Qwen3OmniMoeConfig(
        thinker_config={"text_config": text, "vision_config": vision, "audio_config": audio},
        talker_config=talker, code2wav_config=speech, enable_audio_output=True,
    )  # fmt: skip


_LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_SPARSE = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

KINDS: dict[str, tuple[str, Callable[[Any, bool], Any]]] = {
    "qwen2": ("Qwen2ForCausalLM", _text("Qwen2")),
    "qwen3": ("Qwen3ForCausalLM", _text("Qwen3")),
    "qwen3_moe": ("Qwen3MoeForCausalLM", _text("Qwen3Moe", **_EXPERTS)),
    "qwen3_next": (
        "Qwen3NextForCausalLM", _text("Qwen3Next", **_EXPERTS, **_LINEAR, shared_expert_intermediate_size=16),
    ),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", _qwen3_vl("Qwen3VL")),
    "qwen3_vl_moe": ("Qwen3VLMoeForConditionalGeneration", _qwen3_vl("Qwen3VLMoe", **_EXPERTS)),
    "qwen3_omni": ("Qwen3OmniMoeForConditionalGeneration", _qwen3_omni),
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", _qwen2_vl),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", _qwen2_5_vl),
    "llama": ("LlamaForCausalLM", _text("Llama")),
    "mistral": ("MistralForCausalLM", _text("Mistral", sliding_window=None)),
    "mistral3": ("Mistral3ForConditionalGeneration", _mistral3("mistral")),
    "ministral3": ("Mistral3ForConditionalGeneration", _mistral3("ministral3")),
    "olmo3": ("Olmo3ForCausalLM", _text("Olmo3", sliding_window=16, num_hidden_layers=4)),
    "lfm2": (
        "Lfm2ForCausalLM", _text("Lfm2", layer_types=["conv", "full_attention"], conv_L_cache=3, block_multiple_of=8),
    ),
    "ernie4_5_moe": (
        "Ernie4_5_MoeForCausalLM",
        _text(
            "Ernie4_5_Moe", moe_num_experts=4, moe_k=2, moe_intermediate_size=16, moe_num_shared_experts=1,
            moe_layer_start_index=1, num_hidden_layers=3,
        ),
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        _text(
            "DeepseekV3", **_SPARSE, **_LATENT, num_key_value_heads=4, first_k_dense_replace=1, n_group=2, topk_group=1,
            num_hidden_layers=3,
        ),
    ),
    "cohere2": ("Cohere2ForCausalLM", _text("Cohere2", sliding_window=16)),
    "glm4": ("Glm4ForCausalLM", _text("Glm4")),
    "glm4_moe": (
        "Glm4MoeForCausalLM",
        _text("Glm4Moe", **_SPARSE, first_k_dense_replace=1, n_group=1, topk_group=1, num_hidden_layers=3),
    ),
    "phi3": ("Phi3ForCausalLM", _text("Phi3")),
    "nemotron_h": (
        "NemotronHForCausalLM",
        _text(
            "NemotronH", hybrid_override_pattern="M-*-", num_hidden_layers=4, mamba_num_heads=4, mamba_head_dim=8,
            ssm_state_size=8, n_groups=2, conv_kernel=4, chunk_size=16,
        ),
    ),
    "exaone4": ("Exaone4ForCausalLM", _text("Exaone4", sliding_window=16, sliding_window_pattern=2)),
    "falcon_h1": (
        "FalconH1ForCausalLM",
        _text("FalconH1", mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8),
    ),
    "bailing_hybrid": ("BailingHybridForCausalLM", _text("BailingHybrid")),
    "longcat_flash": (
        "LongcatFlashForCausalLM",
        _text(
            "LongcatFlash", **_LATENT, num_layers=2, ffn_hidden_size=48, expert_ffn_hidden_size=16, moe_topk=2,
            n_routed_experts=4, zero_expert_num=2, num_key_value_heads=4,
        ),
    ),
    "smollm3": ("SmolLM3ForCausalLM", _text("SmolLM3")),
    "afmoe": (
        "AfmoeForCausalLM",
        _text("Afmoe", **_EXPERTS, num_shared_experts=1, num_dense_layers=1, sliding_window=16, num_hidden_layers=4),
    ),
}  # fmt: skip
"""The class of each kind, and a maker of its config from Transformers and whether the head is tied."""


def random_model(kind: str, *, tied: bool = False, seed: int = 0) -> Any:
    """Return a model of a kind in float32, its weights drawn with this seed."""
    import transformers

    name, make = KINDS[kind]
    torch.manual_seed(seed)
    config = make(transformers, tied)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.05).add_(1.0 if parameter.ndim < 2 else 0.0)
    return model.eval()
