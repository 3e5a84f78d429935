"""The modules that stand in for a model's own where it has weights.

A linear layer is linear in its weights: W(λ)x = (1−λ)·W_I x + λ·W_T x. So are an embedding, a bias and a
norm's gain. Both products are therefore computed and joined with each token's λ; no merged weight exists.
With one source for all tokens a module computes what the model's own does, operation by operation.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from dami_merge.live.blend import Blend, PairTensor, WeightSource

__all__ = ["PairEmbedding", "PairLinear", "PairRMSNorm"]


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
        # A bias with the weight's own λ goes into the product; one with a λ of its own is added after.
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
    """The RMSNorm of Llama and Qwen, over the last dimension: (1, tokens, …, features).

    As Transformers computes it: the mean square in fp32, the normalised input rounded to the model's dtype,
    then the gain.
    """

    def __init__(self, blend: Blend, weight: PairTensor, epsilon: float) -> None:
        super().__init__()
        self.blend, self.pair, self.epsilon = blend, weight, epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return g(λ)·x/rms(x)."""
        wide = x.to(torch.float32)
        normal = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)).to(x.dtype)
        if self.blend.source is not WeightSource.MIXED:
            return self.pair.plain(self.blend.source) * normal
        gain = self.blend.norm_weight(self.pair)
        # (tokens, features) against (1, tokens, features), or against (1, tokens, heads, features) of a QK-norm.
        gain = gain.view(gain.shape[0], *(1,) * (x.dim() - 3), gain.shape[1])
        return (gain * normal).to(x.dtype)
