"""`Dami…ForCausalLM`: vLLM's own class of an architecture, holding both endpoints.

The classes are made on request, two for each architecture of vLLM: `DamiQwen3ForCausalLM` has λ of each request,
`DamiUniformQwen3ForCausalLM` one λ at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import torch
from vllm import ModelRegistry
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from dami_merge.checkpoints.model_ref import ModelRef
from dami_router.errors import CheckpointError
from vllm_dami.lambda_rows import LambdaRows
from vllm_dami.pair_refusals import check_architecture, check_configuration, check_uniform
from vllm_dami.pair_settings import PREFIX, UNIFORM, PairSettings
from vllm_dami.pair_surgery import PairedLayers
from vllm_dami.uniform_weights import UniformWeights

__all__: list[str] = []
_THINKING = "dami.thinking."
_LOG = init_logger(__name__)


def __getattr__(name: str) -> Any:
    for prefix, kind in ((UNIFORM, _UniformModel), (PREFIX, _PairModel)):
        if name.startswith(prefix) and name != prefix:
            return _class_of(name.removeprefix(prefix), prefix, kind)
    raise AttributeError(name)


@lru_cache
def _class_of(architecture: str, prefix: str, kind: type[Any]) -> type[Any]:
    own = ModelRegistry.models.get(architecture)
    if own is None:
        raise AttributeError(f"vLLM has no architecture {architecture}")
    content = {"__module__": __name__, "architecture": architecture}
    return type(prefix + architecture, (kind, own.load_model_cls()), content)


class _PairModel:
    """What a pair does otherwise than vLLM's own class, which comes next in line."""

    architecture: str
    supports_lora = False
    supports_pp = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        settings = PairSettings.of(vllm_config.additional_config)
        check_configuration(vllm_config)
        check_architecture(self.architecture)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.lambda_rows = LambdaRows.of(vllm_config)
        self.pairs = PairedLayers(self, settings, self.lambda_rows, vllm_config)
        self.secondary_weights = [
            DefaultModelLoader.Source(
                settings.thinking.path, settings.thinking.revision, prefix=_THINKING, fall_back_to_pt=False
            )
        ]
        self._fills_tokens = not vllm_config.use_v2_model_runner

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load Instruct, then Thinking, each into its half of every pair."""
        files = _Files(weights)
        for end, tensors in enumerate((files.instruct(), files.thinking())):
            self.pairs.select(end)
            loaded = super().load_weights(tensors)  # type: ignore[misc]
            if missing := sorted(self.pairs.names - set(loaded)):
                side = ("the Instruct", "the Thinking")[end]
                raise CheckpointError(f"{side} endpoint lacks {len(missing)} tensors, such as `{missing[0]}`")
        self.pairs.finish()
        return {name for name, _ in self.named_parameters()}  # type: ignore[attr-defined]

    def forward(
        self, input_ids: Any, positions: Any, intermediate_tensors: Any = None, inputs_embeds: Any = None, **more: Any
    ) -> torch.Tensor:
        """Return hidden states with the head's λ behind each."""
        if self._fills_tokens:
            self._fill(positions.shape[-1])
        hidden = super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **more)  # type: ignore[misc]
        return self.lambda_rows.attach(hidden)

    def compute_logits(self, hidden_states: torch.Tensor) -> Any:
        """Return the logits of hidden states that `forward` returned, any of them in any order."""
        hidden, lambdas = self.lambda_rows.detach(hidden_states)
        with self.pairs.head(lambdas):
            return super().compute_logits(hidden)  # type: ignore[misc]

    @staticmethod
    def get_model_state_cls() -> type[Any]:
        """Return the state for vLLM's V2 model runner."""
        from vllm_dami.lambda_state import LambdaModelState

        return LambdaModelState

    def _fill(self, count: int) -> None:
        """Write λ of the tokens (V1): the attention's metadata say where each row starts. A profiling run has none."""
        metadata = get_forward_context().attn_metadata
        if not metadata:
            return
        starts = getattr(next(iter(metadata.values())), "query_start_loc", None)
        if starts is None:
            raise RuntimeError(
                "this attention backend does not say where rows start; use --attention-backend FLASH_ATTN"
            )
        self.lambda_rows.fill(starts, count)


class _UniformModel:
    """vLLM's own class, whose weights are interpolated while they are loaded."""

    architecture: str
    supports_lora = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        check_uniform(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.uniform_lambda: float | None = None
        model = vllm_config.model_config
        self._source = UniformWeights(
            ModelRef(model.model, model.revision), PairSettings.of(vllm_config.additional_config),
            next(self.parameters()).device,  # type: ignore[attr-defined]
        )  # fmt: skip

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        """Load the weights at `uniform_lambda`; vLLM's stream of Instruct's is not read."""
        del weights
        return super().load_weights(self._source.at(self.uniform_lambda))  # type: ignore[misc]


class _Files:
    """Instruct's tensors and then Thinking's, as one stream from vLLM's loader."""

    def __init__(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._rest = iter(weights)
        self._first: tuple[str, torch.Tensor] | None = None

    def instruct(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield tensors up to the first of Thinking's."""
        for item in self._rest:
            if item[0].startswith(_THINKING):
                self._first = item
                return
            yield item

    def thinking(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the rest, under their own names."""
        if self._first is None:
            raise CheckpointError("this --load-format reads one checkpoint only; use auto or safetensors")
        yield self._first[0].removeprefix(_THINKING), self._first[1]
        self._first = None
        for name, tensor in self._rest:
            yield name.removeprefix(_THINKING), tensor
