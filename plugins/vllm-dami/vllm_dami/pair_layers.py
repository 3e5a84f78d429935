"""Layers of two endpoints: W(λ)x = (1−λ)·W_I x + λ·W_T x, with λ of each token.

Both endpoints' matrices lie in one tensor, so that one matrix product, with vLLM's own kernel for the platform, reads
both. While a checkpoint is loaded, the layer's own parameter is the half that belongs to it: vLLM's loaders, which know
sharding and fused projections, write into it as ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

from vllm_dami.lambda_rows import LambdaRows

__all__ = ["Ends", "Group", "PairMethod", "PairNorm"]

Group = int


class Ends(nn.Module):
    """One layer's parameters at both endpoints: `weight` (2·out, in) and perhaps `bias` (2·out), Instruct's half first.

    It looks like a linear layer to vLLM's methods. `own` are the layer's own parameters: they become views of one half.
    """

    def __init__(self, own: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._own = dict(own)
        self.bias: nn.Parameter | None
        for name in ("weight", "bias"):
            self.register_parameter(name, _doubled(own[name]) if name in own else None)
        self.select(0)

    def select(self, end: int) -> None:
        """Make the layer's own parameters the half of one endpoint."""
        for name, parameter in self._own.items():
            parameter.data = self.pair(name)[end].data

    def seal(self) -> bool:
        """Let go of the layer's own parameters; returns whether this is the first time."""
        first = bool(self._own)
        self._own.clear()
        return first

    def pair(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one parameter of both endpoints."""
        instruct, thinking = getattr(self, name).chunk(2)
        return instruct, thinking


def _doubled(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.data.new_zeros((2 * parameter.shape[0], *parameter.shape[1:])), requires_grad=False)


class PairMethod(QuantizeMethodBase):  # type: ignore[misc]  # vLLM is not installed for type checks
    """How vLLM computes a linear layer, an embedding or a head of two endpoints.

    `weight` and `bias` are the groups of the layer's output: one, or (size, group) of each projection in it.
    """

    def __init__(self, own: Any, weight: Sequence[tuple[int, Group]], bias: Sequence[tuple[int, Group]]) -> None:
        self._own = own
        self._weight, self._bias = tuple(weight), tuple(bias)
        self.of_head: torch.Tensor | None = None
        """λ (rows, 1) while the head works, which sees some tokens only."""

    def create_weights(self, *_: Any, **__: Any) -> None:
        """Do nothing: the layer exists already."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Prepare vLLM's kernel; remove the layer's own weight, which is one endpoint's alone."""
        if "weight" in layer._parameters:
            del layer.weight
        if layer.ends.seal():
            self._own.process_weights_after_loading(layer.ends)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return W(λ)x + b(λ): (…, tokens, in) → (…, tokens, out)."""
        together = bias is not None and self._bias == self._weight
        both = self._own.apply(layer.ends, x, layer.ends.bias if together else None)
        instruct, thinking = both.chunk(2, dim=-1)
        mixed = self._mix(layer, instruct, thinking, self._weight)
        if bias is None or together:
            return mixed
        instruct, thinking = (end.expand_as(mixed) for end in layer.ends.pair("bias"))
        return mixed + self._mix(layer, instruct, thinking, self._bias)

    def embedding(self, layer: Any, ids: torch.Tensor) -> torch.Tensor:
        """Return E(λ)[ids]: (…, tokens) → (…, tokens, features)."""
        instruct, thinking = (functional.embedding(ids, end) for end in layer.ends.pair("weight"))
        return self._mix(layer, instruct, thinking, self._weight)

    def _mix(
        self, layer: Any, instruct: torch.Tensor, thinking: torch.Tensor, parts: Sequence[tuple[int, Group]]
    ) -> torch.Tensor:
        count = instruct.shape[-2]
        if self.of_head is not None:
            lambdas = self.of_head
        elif len(parts) == 1:
            lambdas = layer.lambdas[parts[0][1], :count, None]
        else:
            lambdas = torch.cat([layer.lambdas[group, :count, None].expand(-1, size) for size, group in parts], dim=-1)
        return torch.lerp(instruct.float(), thinking.float(), lambdas).to(instruct.dtype)


class PairNorm(nn.Module):
    """A norm of two endpoints, in fp32 and rounded once.

    `gain` is what vLLM adds to the stored weight (Gemma's is 1 + w); `axis` is the dimension of the tokens in its
    input; `centred` subtracts the mean, as LayerNorm does; `width` is how many features count for the mean square.
    """

    lambdas: torch.Tensor

    def __init__(
        self, ends: Ends, own: Mapping[str, nn.Parameter], group: Group, rows: LambdaRows, *,
        epsilon: float, gain: float = 0.0, axis: int = 0, centred: bool = False, width: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.ends, self._group = ends, group
        self._epsilon, self._gain, self._axis, self._centred, self._width = epsilon, gain, axis, centred, width
        for name, parameter in own.items():
            self.register_parameter(name, parameter)
        self.register_buffer("lambdas", rows.tokens, persistent=False)

    def finish(self) -> None:
        """Remove the parameters that are one endpoint's alone."""
        self._parameters.clear()
        self.ends.seal()

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        """Return g(λ)·x/rms(x), and with a residual also the sum that was normalised."""
        wide = x.float()
        if residual is not None:
            wide = wide + residual.float()
            residual = wide.to(x.dtype)
        if self._centred:
            wide = wide - wide.mean(-1, keepdim=True)
        square = wide if self._width is None else wide[..., : self._width]
        normal = wide * torch.rsqrt(square.pow(2).mean(-1, keepdim=True) + self._epsilon)
        made = normal * (self._at("weight", x) + self._gain)
        if self.ends.bias is not None:
            made = made + self._at("bias", x)
        out = made.to(x.dtype)
        return out if residual is None else (out, residual)

    def _at(self, name: str, x: torch.Tensor) -> torch.Tensor:
        count = x.shape[self._axis]
        between = [1] * (x.dim() - self._axis - 2)
        lambdas = self.lambdas[self._group, :count].view(count, *between, 1)
        instruct, thinking = self.ends.pair(name)
        return torch.lerp(instruct.float(), thinking.float(), lambdas)
