"""Every supported architecture gives the log-probabilities of Transformers on merged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.live import logits_of, make_live_pair, model_class, variant
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dami_merge.live import Engine, Generation
from dami_merge.live.blend import WeightSource
from dami_merge.live.supported import MODELS
from dami_router.errors import MisuseError

# What a class can do beside the plain decoder: its windows, biases, norms, caps and multipliers, switched on.
WINDOW = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
LATENT = {
    "q_lora_rank": 12, "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 8,
    "head_dim": 4, "num_key_value_heads": 4,
}  # fmt: skip
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SECTIONS = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
MULTIPLIERS = {
    "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "arcee": {"attention_bias": True, "mlp_bias": True},
    "cohere": {"use_qk_norm": True, "attention_bias": True, "logit_scale": 0.3},
    "cohere2": {**WINDOW, "logit_scale": 0.3},
    "cwm": WINDOW,
    "ernie4_5": {"use_bias": True},
    "exaone4": WINDOW,
    "gemma": {},
    "gemma2": {**WINDOW, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 20},
    "gemma3": {"text_config": WINDOW},
    "gemma3_text": {**WINDOW, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 20},
    "glm": {"attention_bias": True},
    "glm4": {"attention_bias": True},
    "granite": MULTIPLIERS,
    "helium": {},
    "hunyuan_v1_dense": {"attention_bias": True},
    "hyperclovax": MULTIPLIERS,
    "internlm3": {},
    "iquestcoder": {},
    "jais2": {},
    "llama": {"attention_bias": True, "mlp_bias": True},
    "minicpm3": LATENT,
    "mistral3": {"text_config": {"model_type": "ministral3", "sliding_window": 5}},
    "mixtral": {**MIXTURE, "num_local_experts": 4, "sliding_window": 5},
    "ministral": WINDOW,
    "ministral3": {"sliding_window": 5},
    "mistral": {"sliding_window": 5},
    "nanochat": {"final_logit_softcapping": 2.0},
    "olmo": {"clip_qkv": 0.5},
    "olmo2": {},
    "olmo3": WINDOW,
    "olmoe": {**MIXTURE, "clip_qkv": 0.5},
    "persimmon": {"qk_layernorm": True},
    "phi": {"qk_layernorm": True, "num_key_value_heads": 4},
    "phi3": {"sliding_window": 5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen2_5_vl": {"rope_parameters": SECTIONS},
    "qwen2_moe": {**MIXTURE, "shared_expert_intermediate_size": 24, "mlp_only_layers": [1]},
    "qwen2_vl": {"rope_parameters": SECTIONS},
    "qwen3_moe": {**MIXTURE, "norm_topk_prob": True, "mlp_only_layers": [1]},
    "qwen3_vl": {"rope_parameters": SECTIONS},
    "qwen3": {"attention_bias": True},
    "seed_oss": {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True},
    "smollm3": {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 5},
    "starcoder2": {"sliding_window": 5, "use_bias": True},
    "vaultgemma": {**WINDOW, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "youtu": LATENT,
}
LAMBDAS = [0.0, 0.3, 0.55, 1.0, 0.8]
PROMPTS = [[7, 3, 3], [11, 2, 40, 5, 9, 1, 30, 4], [6], [21, 22, 23, 24], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]


def classes(kind: str) -> str:
    """The class that Transformers has for a model type."""
    return str(model_class(CONFIG_MAPPING[kind]()).__name__)


def test_every_listed_class_is_compared() -> None:
    """No class is supported unless one of the cases below is of it."""
    assert {classes(kind) for kind in CASES} == MODELS


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", CASES)
def test_log_probs_are_those_of_transformers_on_merged_weights(kind: str, tied: bool, tmp_path: Path) -> None:
    """Prompts and answers of five rows at five λ, read and written together: within 1e-4 of eager Transformers."""
    pair = make_live_pair(tmp_path, kind, tie_word_embeddings=tied, **CASES[kind])
    engine = Engine.load(str(pair.instruct), str(pair.thinking), mode="mixed", prefill=6)
    models = [variant(pair, lambda_, attention="eager") for lambda_ in LAMBDAS]
    logits = logits_of(engine, PROMPTS, LAMBDAS)
    assert engine.model.source is WeightSource.MIXED  # type: ignore[attr-defined]
    for ours, prompt, model in zip(logits, PROMPTS, models, strict=True):
        with torch.inference_mode():
            theirs = model(torch.tensor([prompt])).logits[0]
        assert (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max() <= 1e-4
    asked = [
        Generation(prompt, lambda_, max_new_tokens=9, ignore_eos=True, log_probs=True, prompt_log_probs=0)
        for prompt, lambda_ in zip(PROMPTS, LAMBDAS, strict=True)
    ]
    for answer, prompt, model in zip(engine.complete(asked), PROMPTS, models, strict=True):
        with torch.inference_mode():
            scores = model(torch.tensor([[*prompt, *answer.tokens]])).logits[0].log_softmax(-1)
        whole = [*prompt, *answer.tokens]
        expected = [float(scores[i, token]) for i, token in enumerate(whole[1:])]
        found = [*(p.log_prob for p in (answer.prompt_log_probs or ())[1:]), *answer.log_probs]
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", CASES)
def test_one_lambda_has_the_bits_of_transformers(kind: str, tmp_path: Path) -> None:
    """In bf16 a lone row at an endpoint, and from the merged buffer, has the very logits of a plain model."""
    pair = make_live_pair(tmp_path, kind, tie_word_embeddings=False, dtype=torch.bfloat16, **CASES[kind])
    engine = Engine.load(str(pair.instruct), str(pair.thinking), mode="uniform")
    # PyTorch's own attention has no soft cap.
    attention = "eager" if "attn_logit_softcapping" in CASES[kind] else "sdpa"
    for lambda_ in (0.0, 0.4, 1.0):
        (ours,) = logits_of(engine, PROMPTS[1:2], [lambda_])
        with torch.inference_mode():
            theirs = variant(pair, lambda_, attention=attention)(torch.tensor(PROMPTS[1:2])).logits[0]
        assert torch.equal(ours, theirs)


LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 2.0, 1.5, 3.0],
        "long_factor": [4.0, 5.0, 6.0, 7.0], "original_max_position_embeddings": 32, "factor": 16.0}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "rope", "most"),
    [("phi3", LONG, 32), ("llama", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, 512)],
    ids=["longrope", "dynamic"],
)
def test_a_rotary_embedding_that_changes_with_length_is_used_up_to_that_length(
    kind: str, rope: dict[str, Any], most: int, tmp_path: Path
) -> None:
    """Up to there rows of one batch cannot change each other; longer ones are refused."""
    pair = make_live_pair(tmp_path, kind, rope_parameters=rope, original_max_position_embeddings=32)
    engine = Engine.load(str(pair.instruct), str(pair.thinking), mode="mixed")
    assert engine.max_length == most
    assert any(f"limited to {most} tokens" in warning for warning in engine.warnings) == (most < 512)
    prompts = [[i % 40 for i in range(31)], [5, 4]]
    for ours, prompt in zip(logits_of(engine, prompts, [0.4, 0.4]), prompts, strict=True):
        with torch.inference_mode():
            theirs = variant(pair, 0.4)(torch.tensor([prompt])).logits[0]
        assert (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max() <= 1e-4
    with pytest.raises(MisuseError, match=f"the model was made for {most} tokens, found {most + 1}"):
        Engine.load(str(pair.instruct), str(pair.thinking), max_length=most + 1)
