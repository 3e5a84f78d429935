"""The models of Transformers that the engine runs, and facts about their modules.

A model is supported if its class is listed here. A test builds every listed class and compares the engine's
log-probabilities with those of Transformers on merged weights. A class that is not listed is refused by name, even
if all its modules are known, because they do not show what the model computes outside of them.
"""

from __future__ import annotations

__all__ = [
    "AFFINE_EMBEDDINGS", "AFFINE_NORMS", "EXPERTS", "HEADS_FIRST", "LLAMA_NORMS", "MODELS", "ROPES", "ROUTERS",
    "SHORT_ROPES",
]  # fmt: skip

MODELS = frozenset({
    "ArceeForCausalLM", "Cohere2ForCausalLM", "CohereForCausalLM", "CwmForCausalLM",
    "Ernie4_5ForCausalLM", "Exaone4ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration", "GemmaForCausalLM",
    "Glm4ForCausalLM", "GlmForCausalLM", "GraniteForCausalLM", "HeliumForCausalLM", "HunYuanDenseV1ForCausalLM",
    "HyperCLOVAXForCausalLM", "Jais2ForCausalLM", "LlamaForCausalLM", "MiniCPM3ForCausalLM", "Ministral3ForCausalLM",
    "MinistralForCausalLM", "Mistral3ForConditionalGeneration", "MistralForCausalLM", "MixtralForCausalLM",
    "NanoChatForCausalLM", "Olmo2ForCausalLM",
    "Olmo3ForCausalLM", "OlmoForCausalLM", "PersimmonForCausalLM", "Phi3ForCausalLM", "PhiForCausalLM",
    "OlmoeForCausalLM", "Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM",
    "Qwen3VLForConditionalGeneration", "SeedOssForCausalLM", "SmolLM3ForCausalLM", "Starcoder2ForCausalLM",
    "VaultGemmaForCausalLM", "YoutuForCausalLM",
})  # fmt: skip

LLAMA_NORMS = frozenset({
    "ArceeRMSNorm", "CwmRMSNorm", "Ernie4_5RMSNorm", "Exaone4RMSNorm", "Glm4RMSNorm", "GlmRMSNorm",
    "GraniteRMSNorm", "HunYuanDenseV1RMSNorm", "HyperCLOVAXRMSNorm", "LlamaRMSNorm", "MiniCPM3RMSNorm",
    "Ministral3RMSNorm", "MinistralRMSNorm", "MistralRMSNorm", "MixtralRMSNorm", "OlmoeRMSNorm",
    "Phi3RMSNorm", "Qwen2MoeRMSNorm", "Qwen2RMSNorm", "Qwen2VLRMSNorm", "Qwen2_5_VLRMSNorm", "Qwen3MoeRMSNorm",
    "Qwen3RMSNorm", "Qwen3VLTextRMSNorm",
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
    "Exaone4ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration", "HunYuanDenseV1ForCausalLM",
    "PhiForCausalLM",
})  # fmt: skip
"""Models that normalise queries and keys as (1, heads, tokens, features); others do as (1, tokens, heads, features)."""

ROUTERS = frozenset({"MixtralTopKRouter", "OlmoeTopKRouter", "Qwen2MoeTopKRouter", "Qwen3MoeTopKRouter"})
"""Routers that begin with a product of their input and their one weight."""

EXPERTS = frozenset({"MixtralExperts", "OlmoeExperts", "Qwen2MoeExperts", "Qwen3MoeExperts"})
"""Experts with a gate, in two parameters (experts, 2·inner, hidden) and (experts, hidden, inner), without biases."""

ROPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that do not depend on the longest sequence of a batch."""
SHORT_ROPES = ("longrope", "dynamic")
"""Rotary embeddings that do not depend on it up to the length of the model's original training."""
