"""What vLLM can do and a server of a pair cannot: refused by name, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dami_router.errors import CheckpointError, MisuseError

__all__ = ["ARCHITECTURES", "check_architecture", "check_configuration", "check_uniform"]

ARCHITECTURES = frozenset({
    "Gemma3ForCausalLM", "GemmaForCausalLM", "Glm4ForCausalLM", "GraniteForCausalLM", "LlamaForCausalLM",
    "Ministral3ForCausalLM", "MistralForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM", "Phi3ForCausalLM",
    "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
})  # fmt: skip
"""The architectures that were compared with Transformers on merged weights (tests/test_vllm_engine.py)."""

_PROCESSOR = "vllm_dami.lambda_requests:LambdaRequests"
_WORKER = "vllm_dami.uniform_worker.LambdaWorker"


def check_architecture(name: str) -> None:
    """Refuse an architecture that was not compared."""
    if name not in ARCHITECTURES:
        raise CheckpointError(
            f"{name} is not supported with λ per request; supported are {', '.join(sorted(ARCHITECTURES))}",
            hint="`--lambda-mode uniform` serves one λ at a time with any model of vLLM; `dami build` makes variants",
        )


def check_configuration(vllm_config: Any) -> None:
    """Refuse options of vLLM under which a token could be computed at another request's λ, or that were not tested."""
    if refused := list(_refused(vllm_config)):
        raise MisuseError(f"not supported with λ per request: {', '.join(refused)}")
    processors = vllm_config.model_config.logits_processors or []
    if not any(item == _PROCESSOR or getattr(item, "__name__", "") == "LambdaRequests" for item in processors):
        raise MisuseError(f"start vLLM with --logits-processors {_PROCESSOR}, which reads λ from the requests")


def check_uniform(vllm_config: Any) -> None:
    """Refuse options of vLLM that interpolated weights do not reach."""
    model = vllm_config.model_config
    found = {
        "a quantised checkpoint": model.quantization,
        "speculative decoding": vllm_config.speculative_config,
        "pipeline parallelism": vllm_config.parallel_config.pipeline_parallel_size > 1,
    }
    if refused := [name for name, given in found.items() if given]:
        raise MisuseError(f"not supported with interpolated weights: {', '.join(refused)}")
    if vllm_config.parallel_config.worker_extension_cls != _WORKER:
        raise MisuseError(f"start vLLM with --worker-extension-cls {_WORKER}, which sets another λ")


def _refused(config: Any) -> Iterator[str]:
    parallel, cache, model = config.parallel_config, config.cache_config, config.model_config
    found = {
        "a quantised checkpoint": model.quantization,
        "LoRA": config.lora_config,
        "speculative decoding": config.speculative_config,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "context parallelism": parallel.prefill_context_parallel_size * parallel.decode_context_parallel_size > 1,
        "dual batch overlap": parallel.use_ubatching,
        "batch-sharded sampling": parallel.enable_batch_sharded_sampling,
        "offloading weights to the CPU": config.offload_config.uva.cpu_offload_gb
        or config.offload_config.prefetch.offload_group_size,
        "transfer of keys and values": config.kv_transfer_config,
        "fast prefill with shared keys and values": cache.kv_sharing_fast_prefill,
        "prompt embeddings": model.enable_prompt_embeds,
        "a runner other than generate": model.runner_type != "generate",
        "a head in another dtype": model.head_dtype != model.dtype,
    }
    yield from (name for name, given in found.items() if given)
