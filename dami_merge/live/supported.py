"""The models of Transformers that the engine runs, and facts about their modules.

A model is supported if its class is listed here. A test builds every listed class and compares the engine's
log-probabilities with those of Transformers on merged weights. A class that is not listed is refused by name, even
if all its modules are known, because they do not show what the model computes outside of them.
"""

from __future__ import annotations

__all__ = ["AFFINE_EMBEDDINGS", "AFFINE_NORMS", "CAUSAL_MODELS", "HEADS_FIRST", "LLAMA_NORMS", "ROPES", "SHORT_ROPES"]

CAUSAL_MODELS = frozenset({
    "ArceeForCausalLM", "Cohere2ForCausalLM", "CohereForCausalLM", "CwmForCausalLM",
    "Ernie4_5ForCausalLM", "Exaone4ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GemmaForCausalLM",
    "Glm4ForCausalLM", "GlmForCausalLM", "GraniteForCausalLM", "HeliumForCausalLM", "HunYuanDenseV1ForCausalLM",
    "HyperCLOVAXForCausalLM", "Jais2ForCausalLM", "LlamaForCausalLM", "MiniCPM3ForCausalLM", "Ministral3ForCausalLM",
    "MinistralForCausalLM", "MistralForCausalLM", "NanoChatForCausalLM", "Olmo2ForCausalLM",
    "Olmo3ForCausalLM", "OlmoForCausalLM", "PersimmonForCausalLM", "Phi3ForCausalLM", "PhiForCausalLM",
    "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SeedOssForCausalLM", "SmolLM3ForCausalLM", "Starcoder2ForCausalLM",
    "VaultGemmaForCausalLM", "YoutuForCausalLM",
})  # fmt: skip

LLAMA_NORMS = frozenset({
    "ArceeRMSNorm", "CwmRMSNorm", "Ernie4_5RMSNorm", "Exaone4RMSNorm", "Glm4RMSNorm", "GlmRMSNorm",
    "GraniteRMSNorm", "HunYuanDenseV1RMSNorm", "HyperCLOVAXRMSNorm", "LlamaRMSNorm", "MiniCPM3RMSNorm",
    "Ministral3RMSNorm", "MinistralRMSNorm", "MistralRMSNorm", "Phi3RMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm",
    "SeedOssRMSNorm", "SmolLM3RMSNorm", "YoutuRMSNorm",
})  # fmt: skip
"""Norms that compute exactly what Llama's does, which `PairRMSNorm` computes."""

AFFINE_NORMS = frozenset({
    "Cohere2LayerNorm", "CohereLayerNorm", "Gemma2RMSNorm", "Gemma3RMSNorm", "GemmaRMSNorm", "HeliumRMSNorm",
    "LayerNorm", "Olmo2RMSNorm", "Olmo3RMSNorm", "VaultGemmaRMSNorm",
})  # fmt: skip
"""Norms whose output is affine in their parameters: Transformers' own module runs once for each endpoint."""

AFFINE_EMBEDDINGS = frozenset({
    "Gemma2TextScaledWordEmbedding", "Gemma3TextScaledWordEmbedding", "GemmaTextScaledWordEmbedding",
    "MiniCPM3ScaledWordEmbedding", "VaultGemmaTextScaledWordEmbedding",
})  # fmt: skip
"""Embeddings with a constant factor."""

HEADS_FIRST = frozenset({
    "Exaone4ForCausalLM", "Gemma3ForCausalLM", "HunYuanDenseV1ForCausalLM", "PhiForCausalLM",
})  # fmt: skip
"""Models that normalise queries and keys as (1, heads, tokens, features); others do as (1, tokens, heads, features)."""

ROPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that do not depend on the longest sequence of a batch."""
SHORT_ROPES = ("longrope", "dynamic")
"""Rotary embeddings that do not depend on it up to the length of the model's original training."""
