"""Which weights a pass through the model uses: both endpoints' with a λ per token, or one set for all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch

__all__ = ["Blend", "Lambdas", "PairTensor", "WeightSource"]


class WeightSource(Enum):
    """Which weights a module uses."""

    INSTRUCT = 0
    THINKING = 1
    MERGED = 2
    MIXED = 3


@dataclass(eq=False)
class PairTensor:
    """One parameter of both endpoints: `ends` (2, *shape), Instruct's first.

    `group` is the index of this parameter's λ in a row's vector; `merged` (shape) exists once a merge was requested.
    The endpoints lie side by side in memory, so one matrix product reads both, and each is still a tensor.
    """

    name: str
    group: int
    ends: torch.Tensor
    merged: torch.Tensor | None = None

    def plain(self, source: WeightSource) -> torch.Tensor:
        """Return the parameter itself, for every source but MIXED."""
        if source is WeightSource.MERGED:
            assert self.merged is not None
            return self.merged
        return self.ends[source.value]


@dataclass(eq=False)
class Lambdas:
    """λ of every token of a pass: `values` (groups, tokens, 1).

    `norms` caches the norms' weights at these λ. A batch keeps its `Lambdas` from one token to the next, so
    they are computed once.
    """

    values: torch.Tensor
    norms: dict[int, torch.Tensor] = field(default_factory=dict)

    def of(self, tokens: Sequence[int]) -> Lambdas:
        """Return λ for some of the tokens."""
        return Lambdas(self.values[:, list(tokens)])


class Blend:
    """State shared by all modules of one model; the engine sets it before each pass."""

    def __init__(self) -> None:
        self.source = WeightSource.INSTRUCT
        self.lambdas: Lambdas | None = None

    def set(self, source: WeightSource, lambdas: Lambdas | None = None) -> None:
        """Use `source` from now on; MIXED needs λ for the tokens of the next call."""
        self.source, self.lambdas = source, lambdas

    def mix(
        self, instruct: torch.Tensor, thinking: torch.Tensor, group: int, tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return (1−λ)·instruct + λ·thinking, token by token; both are (…, tokens, features).

        In fp32 (fp64 for fp64), rounded once to their dtype. `tokens` says which token each row belongs to, if that
        is not the row's own index.
        """
        assert self.lambdas is not None
        lambda_ = self.lambdas.values[group]
        if tokens is not None:
            lambda_ = lambda_[tokens]
        if instruct.dtype == lambda_.dtype:
            return torch.lerp(instruct, thinking, lambda_)
        return torch.lerp(instruct.to(lambda_.dtype), thinking.to(lambda_.dtype), lambda_).to(instruct.dtype)

    def norm_weight(self, pair: PairTensor) -> torch.Tensor:
        """Return a norm's weight at each token's λ: (tokens, features), not rounded to the model's dtype."""
        assert self.lambdas is not None
        known = self.lambdas.norms.get(id(pair))
        if known is None:
            values = self.lambdas.values[pair.group]
            known = torch.lerp(pair.ends[0].to(values.dtype), pair.ends[1].to(values.dtype), values)
            self.lambdas.norms[id(pair)] = known
        return known
