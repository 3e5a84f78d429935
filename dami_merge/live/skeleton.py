"""Build a model without weights and replace its modules by pairs; unsupported models are refused by name.

Transformers builds the model on the meta device from the Instruct endpoint's config, so attention, rotary
embeddings and the order of operations are its own. No memory is taken and no file is read before the model's class
and every module are known to be supported. No remote code is run: Transformers itself must have the architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.tying import untied as untied_config
from dami_merge.live.attention import ATTENTION
from dami_merge.live.blend import Blend, PairTensor
from dami_merge.live.mixture import PairExperts, PairRouter
from dami_merge.live.modules import PairAffine, PairEmbedding, PairLinear, PairRMSNorm
from dami_merge.live.supported import (
    AFFINE_EMBEDDINGS,
    AFFINE_NORMS,
    EXPERTS,
    HEADS_FIRST,
    LLAMA_NORMS,
    MODELS,
    ROPES,
    ROUTERS,
    SHORT_ROPES,
)  # fmt: skip
from dami_router.errors import CheckpointError

__all__ = ["exchange", "longest", "parameter_names", "skeleton"]

_HEAD = "lm_head"
_SHOWN = 4
_AFFINE = AFFINE_NORMS | AFFINE_EMBEDDINGS
_KNOWN = _AFFINE | LLAMA_NORMS | ROUTERS | EXPERTS


def skeleton(side: Checkpoint, *, untied: bool = False) -> Any:
    """Return the endpoint's model on the meta device; CheckpointError names what is not supported.

    Of a model for images and text, only the language model. `untied` gives it a head of its own whatever the config
    says.
    """
    config = _config(side, untied=untied)
    kind = _class(config)
    if kind is None:
        raise CheckpointError(
            f"{side.ref}: {type(config).__name__} is not the config of a language model that Transformers has"
        )
    _check_rope(side, config.get_text_config())
    with torch.device("meta"):
        try:
            model = kind._from_config(config, attn_implementation=ATTENTION)
        except Exception as error:  # a config is untrusted: Transformers can fail on it anywhere
            raise CheckpointError(f"{side.ref}: Transformers cannot build a model from config.json: {error}") from None
    _leave_language_model(model)
    _refuse_modules(side, model)
    _refuse_class(side, model)
    return model.eval().requires_grad_(False)


def _class(config: Any) -> Any:
    from transformers.models.auto import modeling_auto

    mappings = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return next((found for mapping in mappings if (found := mapping.get(type(config), None))), None)


def _leave_language_model(model: Any) -> None:
    """Remove the parts of a model that read images."""
    decoder, body = model.get_decoder(), model.base_model
    if any(child is decoder for child in body.children()):
        for name, child in list(body.named_children()):
            if child is not decoder:
                delattr(body, name)


def parameter_names(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter that a checkpoint must have; a tied head is the embeddings."""
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


def longest(config: Any) -> int:
    """Return how many tokens a row may have: the model's own limit; 0 if its config does not set one.

    If the rotary embedding changes beyond some length, that is the limit: rows of one batch would affect each other.
    """
    positions = int(getattr(config, "max_position_embeddings", 0) or 0)
    for rope in _ropes(config):
        if rope.get("rope_type") in SHORT_ROPES:
            short = rope.get("original_max_position_embeddings") or positions
            positions = min(positions or int(short), int(short))
    return positions


def exchange(model: Any, blend: Blend, pairs: Mapping[str, PairTensor], device: torch.device) -> None:
    """Replace a skeleton's modules by pair modules, and create its buffers on the device."""
    for path, module in list(model.named_modules()):
        if made := _pair_module(path, module, blend, pairs, model):
            model.set_submodule(path, made)
            if type(module).__name__ in AFFINE_EMBEDDINGS:
                module.embed_scale = torch.tensor(module.scalar_embed_scale, device=device)
        elif _buffers(module):
            # Rotary tables are computed, never stored: compute them again from the config, off the meta device.
            model.set_submodule(path, type(module)(model.get_decoder().config).to(device))


def _pair_module(
    path: str, module: nn.Module, blend: Blend, pairs: Mapping[str, PairTensor], model: Any
) -> nn.Module | None:
    heads_first = type(model).__name__ in HEADS_FIRST
    own = {name: pairs[key] for name, _ in module.named_parameters(recurse=False) if (key := f"{path}.{name}") in pairs}
    if path == _HEAD:
        return PairLinear(blend, own.get("weight") or pairs[_embeddings(model)], own.get("bias"))
    if type(module) is nn.Linear:
        return PairLinear(blend, own["weight"], own.get("bias"))
    if type(module) is nn.Embedding:
        return PairEmbedding(blend, own["weight"])
    if type(module).__name__ in LLAMA_NORMS:
        return PairRMSNorm(blend, own["weight"], float(module.variance_epsilon), heads_first=heads_first)  # type: ignore[arg-type]
    if type(module).__name__ in ROUTERS:
        return PairRouter(blend, module, own["weight"])
    if type(module).__name__ in EXPERTS:
        return PairExperts(blend, module, own["gate_up_proj"], own["down_proj"])
    if own and type(module).__name__ in _AFFINE:
        return PairAffine(blend, module, own, heads_first=heads_first)
    return None


def _embeddings(model: Any) -> str:
    table = model.get_input_embeddings()
    return next(f"{path}.weight" for path, module in model.named_modules() if module is table)


def _config(side: Checkpoint, *, untied: bool) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = side.config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{side.ref}: model_type {kind!r:.60} is unknown to Transformers",
            hint="models with their own code are not supported, because dami runs no code of a checkpoint",
        )
    try:
        own = untied_config(side.config) if untied else side.config
        return CONFIG_MAPPING[kind].from_dict({k: v for k, v in own.items() if k != "auto_map"})
    except Exception as error:  # a config is untrusted: Transformers can fail on it anywhere
        raise CheckpointError(f"{side.ref}: Transformers cannot read config.json: {error}") from None


def _ropes(config: Any) -> list[Mapping[str, Any]]:
    """Return a model's rotary embeddings: one, or one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, Mapping)]
    return nested or [rope]


def _check_rope(side: Checkpoint, config: Any) -> None:
    for rope in _ropes(config):
        kind = rope.get("rope_type", "default")
        if kind not in ROPES + SHORT_ROPES:
            raise CheckpointError(
                f"{side.ref}: rotary embedding `{kind!s:.40}` is not supported: rows of one batch might affect"
                f" each other. Supported: {', '.join(ROPES + SHORT_ROPES)}"
            )


def _refuse_modules(side: Checkpoint, model: Any) -> None:
    unsupported = dict(_unsupported(model))
    if unsupported:
        shown = ", ".join(f"{kind} (`{path}`)" for kind, path in list(unsupported.items())[:_SHOWN])
        raise CheckpointError(
            f"{side.ref}: not supported with two endpoints in memory: {shown}",
            hint="docs/live.md lists the supported models; `dami build` makes variants of any model",
        )


def _refuse_class(side: Checkpoint, model: Any) -> None:
    kind = type(model).__name__
    if kind not in MODELS:
        raise CheckpointError(
            f"{side.ref}: {kind} is not supported with two endpoints in memory; supported are"
            f" {', '.join(sorted(name.partition('For')[0] for name in MODELS))}",
            hint="`dami build` makes variants of any model",
        )


def _unsupported(model: Any) -> Iterator[tuple[str, str]]:
    """Yield the kind and the path of each module that holds weights of its own and cannot be exchanged.

    Attention that looks at later tokens is not supported either.
    """
    for path, module in reversed(list(model.named_modules())):
        own = [name for name, _ in module.named_parameters(recurse=False)]
        kind = type(module).__name__
        supported = type(module) in (nn.Linear, nn.Embedding) or kind in _KNOWN
        stored = {n for n, _ in module.named_buffers(recurse=False)} - module._non_persistent_buffers_set
        if (own and not supported) or stored:
            yield kind, path
        if getattr(module, "is_causal", True) is False:
            yield f"{kind} that is not causal", path
    if not getattr(model, "_supports_attention_backend", False):
        yield type(model).__name__, "attention"


def _buffers(module: nn.Module) -> bool:
    return any(buffer.is_meta for buffer in module.buffers(recurse=False))
