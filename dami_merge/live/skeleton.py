"""A model without weights, its modules exchanged for pairs; what cannot be exchanged is refused by name.

Transformers builds the model on the meta device from the Instruct endpoint's config, so that attention, rotary
embeddings and the order of everything are its own. No memory is taken and no file read before every module is
known to be supported. No remote code is run: the architecture must be one that Transformers itself has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.live.attention import ATTENTION
from dami_merge.live.blend import Blend, PairTensor
from dami_merge.live.modules import PairEmbedding, PairLinear, PairRMSNorm
from dami_router.errors import CheckpointError

__all__ = ["exchange", "parameter_names", "skeleton"]

_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
"""Norms that compute what PairRMSNorm computes."""
_ROPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that do not depend on how long the longest sequence of a batch is."""
_HEAD = "lm_head"
_SHOWN = 4


def skeleton(side: Checkpoint) -> Any:
    """Return the endpoint's model on the meta device; CheckpointError names what is not supported."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = _config(side)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        raise CheckpointError(f"{side.ref}: {type(config).__name__} describes no language model that Transformers has")
    _check_rope(side, config)
    with torch.device("meta"):
        try:
            model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
        except Exception as error:  # a config is untrusted: Transformers may fail on it anywhere
            raise CheckpointError(f"{side.ref}: config.json makes no model: {error}") from None
    _refuse(side, model)
    return model.eval().requires_grad_(False)


def parameter_names(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter that a checkpoint must have; a tied head is the embeddings."""
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


def exchange(model: Any, blend: Blend, pairs: Mapping[str, PairTensor], device: torch.device) -> None:
    """Put pair modules in the places of a skeleton's own, and its buffers on the device."""
    for path, module in list(model.named_modules()):
        if made := _pair_module(path, module, blend, pairs, model):
            model.set_submodule(path, made)
        elif _buffers(module):
            # Rotary tables are computed, never stored: made again from the config, off the meta device.
            model.set_submodule(path, type(module)(model.config).to(device))


def _pair_module(
    path: str, module: nn.Module, blend: Blend, pairs: Mapping[str, PairTensor], model: Any
) -> nn.Module | None:
    if path == _HEAD and f"{path}.weight" not in pairs:
        return PairLinear(blend, pairs[_embeddings(model)], None)
    if type(module) is nn.Linear:
        return PairLinear(blend, pairs[f"{path}.weight"], pairs.get(f"{path}.bias"))
    if type(module) is nn.Embedding:
        return PairEmbedding(blend, pairs[f"{path}.weight"])
    if type(module).__name__ in _NORMS:
        return PairRMSNorm(blend, pairs[f"{path}.weight"], float(getattr(module, "variance_epsilon")))  # noqa: B009
    return None


def _embeddings(model: Any) -> str:
    table = model.get_input_embeddings()
    return next(f"{path}.weight" for path, module in model.named_modules() if module is table)


def _config(side: Checkpoint) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = side.config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{side.ref}: model_type {kind!r:.60} is unknown to Transformers",
            hint="models that bring their own code are not supported: it would have to be run",
        )
    try:
        return CONFIG_MAPPING[kind].from_dict({k: v for k, v in side.config.items() if k != "auto_map"})
    except Exception as error:  # a config is untrusted: Transformers may fail on it anywhere
        raise CheckpointError(f"{side.ref}: config.json is not understood: {error}") from None


def _check_rope(side: Checkpoint, config: Any) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind not in _ROPES:
        raise CheckpointError(
            f"{side.ref}: rotary embedding `{kind}` depends on the longest sequence of a batch; rows of one batch"
            f" would change each other. Supported: {', '.join(_ROPES)}"
        )


def _refuse(side: Checkpoint, model: Any) -> None:
    unsupported = dict(_unsupported(model))
    if unsupported:
        shown = ", ".join(f"{kind} (`{path}`)" for kind, path in list(unsupported.items())[:_SHOWN])
        raise CheckpointError(
            f"{side.ref}: not supported with two endpoints in memory: {shown}",
            hint="linear layers, embeddings and RMSNorm of dense Qwen2, Qwen3, Llama and Mistral models are;"
            " `dami build` makes variants of any model",
        )


def _unsupported(model: Any) -> Iterator[tuple[str, str]]:
    """Yield the kind of each module that holds weights of its own and cannot be exchanged, and its path."""
    for path, module in reversed(list(model.named_modules())):
        own = [name for name, _ in module.named_parameters(recurse=False)]
        supported = type(module) in (nn.Linear, nn.Embedding) or type(module).__name__ in _NORMS
        stored = {n for n, _ in module.named_buffers(recurse=False)} - module._non_persistent_buffers_set
        if (own and not supported) or stored:
            yield type(module).__name__, path
    if not getattr(model, "_supports_attention_backend", False):
        yield type(model).__name__, "attention"


def _buffers(module: nn.Module) -> bool:
    return any(buffer.is_meta for buffer in module.buffers(recurse=False))
