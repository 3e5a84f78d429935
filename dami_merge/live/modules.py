"""The modules that replace a model's own wherever it has weights.

A linear layer is linear in its weights: W(λ)x = (1−λ)·W_I x + λ·W_T x. So are an embedding, a bias and a
norm's gain. Each module computes both products and joins them with each token's λ; no merged weight exists.
With one source for all tokens a module computes what the model's own does, operation by operation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from dami_merge.live.blend import Blend, PairTensor, WeightSource

__all__ = ["PairAffine", "PairEmbedding", "PairLinear", "PairRMSNorm"]

_HIDDEN_DIMS = 3
"""Of a layer's input, (1, tokens, features); with one more there are heads."""


class PairLinear(nn.Module):
    """`nn.Linear` of two endpoints: (1, tokens, in) → (1, tokens, out)."""

    def __init__(self, blend: Blend, weight: PairTensor, bias: PairTensor | None) -> None:
        super().__init__()
        self.blend, self.pair, self.pair_bias = blend, weight, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return W(λ)x + b(λ)."""
        blend, weight, bias = self.blend, self.pair, self.pair_bias
        if blend.source is not WeightSource.MIXED:
            return functional.linear(x, weight.plain(blend.source), None if bias is None else bias.plain(blend.source))
        # A bias with the same λ as its weight is part of the product; any other is added afterwards.
        together = bias is not None and bias.group == weight.group
        both = functional.linear(x, weight.ends.flatten(0, 1), bias.ends.flatten() if bias and together else None)
        instruct, thinking = both.view(*both.shape[:-1], 2, -1).unbind(-2)
        mixed = blend.mix(instruct, thinking, weight.group)
        if bias is None or together:
            return mixed
        return mixed + blend.norm_weight(bias).to(mixed.dtype)


class PairEmbedding(nn.Module):
    """`nn.Embedding` of two endpoints: (1, tokens) → (1, tokens, features)."""

    def __init__(self, blend: Blend, weight: PairTensor) -> None:
        super().__init__()
        self.blend, self.pair = blend, weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return E(λ)[ids]."""
        if self.blend.source is not WeightSource.MIXED:
            return functional.embedding(ids, self.pair.plain(self.blend.source))
        instruct, thinking = (functional.embedding(ids, end) for end in self.pair.ends)
        return self.blend.mix(instruct, thinking, self.pair.group)


class PairRMSNorm(nn.Module):
    """The RMSNorm of Llama and Qwen over the last dimension: (1, tokens, …, features).

    It computes what Transformers' does: the mean square in fp32, the normalised input rounded to the model's dtype,
    then the gain. Queries and keys are (1, tokens, heads, features), or with `heads_first`
    (1, heads, tokens, features).
    """

    def __init__(self, blend: Blend, weight: PairTensor, epsilon: float, *, heads_first: bool = False) -> None:
        super().__init__()
        self.blend, self.pair, self.epsilon, self.heads_first = blend, weight, epsilon, heads_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return g(λ)·x/rms(x)."""
        wide = x.to(torch.float32)
        normal = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)).to(x.dtype)
        if self.blend.source is not WeightSource.MIXED:
            return self.pair.plain(self.blend.source) * normal
        gain = self.blend.norm_weight(self.pair)
        if x.dim() > _HIDDEN_DIMS and not self.heads_first:
            gain = gain[:, None]
        return (gain * normal).to(x.dtype)


class PairAffine(nn.Module):
    """A module of Transformers whose output is affine in its parameters, run once for each endpoint.

    Used for norms of any kind, and for embeddings with a factor: (1, tokens, …) → (1, tokens, …, features). Queries
    and keys have one dimension more: (1, tokens, heads, features), or (1, heads, tokens, features) with
    `heads_first`. The module's own code runs; only its parameters are exchanged. `pairs` has them by name.
    """

    def __init__(self, blend: Blend, own: nn.Module, pairs: Mapping[str, PairTensor], *, heads_first: bool) -> None:
        super().__init__()
        self.blend, self.own, self.heads_first = blend, own, heads_first
        self.pairs = dict(pairs)
        # They become plain attributes, which `_run` sets.
        for name in self.pairs:
            del own._parameters[name]
        groups: dict[int, list[str]] = {}
        for name, pair in self.pairs.items():
            groups.setdefault(pair.group, []).append(name)
        self.groups = list(groups.items())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the module's output with its parameters at each token's λ."""
        if self.blend.source is not WeightSource.MIXED:
            return self._run(x, {name: pair.plain(self.blend.source) for name, pair in self.pairs.items()})
        instruct = {name: pair.ends[0] for name, pair in self.pairs.items()}
        start = out = self._run(x, instruct)
        swap = not self.heads_first and start.dim() > _HIDDEN_DIMS
        for index, (group, names) in enumerate(self.groups):
            end = self._run(x, instruct | {name: self.pairs[name].ends[1] for name in names})
            # There is usually one group. A bias with a λ of its own adds its own change.
            moved = self._mix(start, end, group, swap=swap)
            out = moved if index == 0 else out + (moved - start)
        return out

    def _run(self, x: torch.Tensor, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self.own.__dict__.update(values)
        out: torch.Tensor = self.own(x)
        return out

    def _mix(self, instruct: torch.Tensor, thinking: torch.Tensor, group: int, *, swap: bool) -> torch.Tensor:
        if swap:
            return self.blend.mix(instruct.transpose(1, 2), thinking.transpose(1, 2), group).transpose(1, 2)
        return self.blend.mix(instruct, thinking, group)
