"""Exchange every module of a vLLM model that holds weights; what cannot be exchanged is refused by name.

It walks the model that vLLM has built, before any weight is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, LayerNorm, RMSNorm
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding
from vllm.model_executor.models.transformers.base import Base as TransformersModel

from dami_merge.interpolation.depth import Anatomy
from dami_merge.live.spread import Spread
from dami_router.errors import CheckpointError
from vllm_dami.lambda_rows import LambdaRows
from vllm_dami.pair_layers import Ends, Group, PairMethod, PairNorm
from vllm_dami.pair_settings import PairSettings

__all__ = ["PairedLayers", "unknown_layers"]

_PRODUCTS = (LinearBase, VocabParallelEmbedding)
_METHODS = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
_NORMS = (RMSNorm, GemmaRMSNorm, LayerNorm, nn.LayerNorm)
_SHOWN = 4


class PairedLayers:
    """All layers of a model that hold weights."""

    def __init__(self, model: Any, settings: PairSettings, rows: LambdaRows, vllm_config: Any) -> None:
        self._rows = rows
        # In models of Transformers a step's tokens are one sequence: (1, tokens, …).
        self._token_axis = 1 if isinstance(model, TransformersModel) else 0
        modules = list(model.named_modules())
        _refuse(model)
        self.names = {name for name, _ in model.named_parameters()}
        """The parameters that each checkpoint must fill."""
        fused: Mapping[str, list[str]] = getattr(model, "packed_modules_mapping", None) or {}
        self._stored = dict(_stored(modules, fused))
        names = list(dict.fromkeys(name for parts in self._stored.values() for name in parts))
        config = vllm_config.model_config.hf_config.to_dict()
        self._spread = Spread(
            {name: [name] for name in names}, Anatomy.of(names, config), settings.family.path, settings.recipe
        )
        scheduler = vllm_config.scheduler_config
        device = next(model.parameters()).device
        rows.allocate(self._spread, scheduler.max_num_seqs, _most_tokens(vllm_config), device, settings.default)
        self._ends: dict[int, Ends] = {}
        self._norms: list[PairNorm] = []
        self._tables: list[PairMethod] = []
        for name, module in modules:
            if isinstance(module, _PRODUCTS):
                self._exchange_method(name, module)
            elif isinstance(module, _NORMS) and _own(module):
                self._exchange_norm(model, name, module)

    def select(self, end: int) -> None:
        """Load into one endpoint from now on: 0 is Instruct, 1 Thinking."""
        for ends in self._ends.values():
            ends.select(end)

    def finish(self) -> None:
        """Remove the norms' own weights; vLLM calls `PairMethod` for all other layers."""
        for norm in self._norms:
            norm.finish()

    @contextmanager
    def head(self, lambdas: torch.Tensor) -> Iterator[None]:
        """Use these λ (rows, 1) in embeddings and head, for the tokens whose logits are wanted."""
        for method in self._tables:
            method.of_head = lambdas
        try:
            yield
        finally:
            for method in self._tables:
                method.of_head = None

    def _exchange_method(self, name: str, module: Any) -> None:
        own = _own(module)
        key = id(own["weight"])
        if key not in self._ends:
            self._ends[key] = Ends(own)
        module.ends = self._ends[key]
        weight, bias = (self._groups(name, kind, module) for kind in ("weight", "bias"))
        method = module.quant_method = PairMethod(module.quant_method, weight, bias)
        module.register_buffer("lambdas", self._rows.tokens, persistent=False)
        if isinstance(module, VocabParallelEmbedding):
            # This kernel of vLLM would read the layer's own weight.
            module.use_fused_embedding = False
            self._tables.append(method)
            # The head comes last; a tied one has the embeddings' group.
            self._rows.head = weight[0][1]

    def _exchange_norm(self, model: Any, name: str, module: Any) -> None:
        own = _own(module)
        ends = self._ends[id(own["weight"])] = Ends(own)
        group = self._spread.groups[self._stored[name, "weight"][0]]
        gain = 1.0 if isinstance(module, GemmaRMSNorm) else 0.0
        centred = isinstance(module, LayerNorm | nn.LayerNorm)
        made = PairNorm(
            ends, own, group, self._rows, epsilon=module.eps if centred else module.variance_epsilon, gain=gain,
            axis=self._token_axis, centred=centred, width=getattr(module, "variance_size_override", None),
        )  # fmt: skip
        self._norms.append(made)
        model.set_submodule(name, made)

    def _groups(self, name: str, kind: str, module: Any) -> list[tuple[int, Group]]:
        stored = self._stored.get((name, kind), [])
        groups = [self._spread.groups[part] for part in stored]
        if len(set(groups)) <= 1:
            return [(0, group) for group in groups[:1]]
        sizes = list(module.output_partition_sizes)
        if len(sizes) != len(groups):
            raise CheckpointError(
                f"{name}: its parts have different λ, and vLLM does not say where one ends",
                hint="give them the same λ: one filter for all of them",
            )
        return list(zip(sizes, groups, strict=True))


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(recurse=False))


def unknown_layers(model: Any) -> dict[str, str]:
    """Return the kinds of layers with weights that were not tested here, and where the first of each kind is."""
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        own = _own(module)
        if isinstance(module, _PRODUCTS):
            plain = type(module.quant_method) in _METHODS and set(own) <= {"weight", "bias"}
            returned = getattr(module, "skip_bias_add", False) and "bias" in own
            fits = plain and not returned
        else:
            fits = not own or (isinstance(module, _NORMS) and set(own) <= {"weight", "bias"})
        if not fits:
            found.setdefault(type(module).__name__, name)
    return found


def _refuse(model: Any) -> None:
    if unsupported := unknown_layers(model):
        shown = ", ".join(f"{kind} (`{name}`)" for kind, name in list(unsupported.items())[:_SHOWN])
        raise CheckpointError(
            f"vLLM's model has modules that cannot hold two endpoints: {shown}",
            hint="`--lambda-mode uniform` serves one λ at a time with any model of vLLM; `dami build` makes variants",
        )


def _stored(
    modules: list[tuple[str, nn.Module]], fused: Mapping[str, list[str]]
) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """Yield each parameter's names in a checkpoint: one, or one for each projection that vLLM has fused.

    A tied head's parameter is the embeddings', and so is its name.
    """
    seen: dict[int, list[str]] = {}
    for name, module in modules:
        if not isinstance(module, _PRODUCTS + _NORMS):
            continue
        parent, _, last = name.rpartition(".")
        for kind, parameter in _own(module).items():
            parts = [f"{parent}.{part}.{kind}".lstrip(".") for part in fused.get(last, [last])]
            yield (name, kind), seen.setdefault(id(parameter), parts)


def _most_tokens(vllm_config: Any) -> int:
    captured = vllm_config.compilation_config.max_cudagraph_capture_size or 0
    return int(
        max(vllm_config.scheduler_config.max_num_batched_tokens, captured, vllm_config.scheduler_config.max_num_seqs)
    )
