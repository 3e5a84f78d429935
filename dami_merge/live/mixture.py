"""Mixtures of experts of two endpoints: the choice of the experts, and the experts themselves.

An expert is two linear layers with an activation between them, which is not linear. So the first product of both
endpoints is mixed, then activated, then the second product of both endpoints is mixed. The choice follows from the
mixed scores: a token gets the experts that the merged model gives it, and both endpoints' versions of them are read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from dami_merge.live.blend import Blend, PairTensor, WeightSource

__all__ = ["PairExperts", "PairRouter"]


class PairRouter(nn.Module):
    """Chooses experts by scores that are linear in its weight: (tokens, features) → what the model's own returns.

    The model's own code turns scores into a choice. It starts with a product with its weight, which is given the
    identity where the product is known already.
    """

    def __init__(self, blend: Blend, own: Any, weight: PairTensor) -> None:
        super().__init__()
        self.blend, self.own, self.pair = blend, own, weight
        del own._parameters["weight"]
        self._experts, self._features = weight.ends.shape[1:]
        self._identity = torch.eye(self._experts, dtype=weight.ends.dtype, device=weight.ends.device)

    def forward(self, x: torch.Tensor) -> Any:
        """Return the scores, and each token's experts with their weights."""
        source, pair = self.blend.source, self.pair
        if source is not WeightSource.MIXED:
            return self._run(x, pair.plain(source), self._features)
        both = functional.linear(x.reshape(-1, self._features), pair.ends.flatten(0, 1))
        scores = self.blend.mix(both[:, : self._experts], both[:, self._experts :], pair.group)
        return self._run(scores, self._identity, self._experts)

    def _run(self, x: torch.Tensor, weight: torch.Tensor, features: int) -> Any:
        self.own.__dict__["weight"] = weight
        self.own.hidden_dim = features
        return self.own(x)


class PairExperts(nn.Module):
    """The experts of a layer: (tokens, features), chosen experts and their weights (tokens, k) → (tokens, features).

    `first` (2, experts, 2·inner, features) and `second` (2, experts, features, inner) are the products before and
    after the activation, named as in the model's own module, which runs where one set of weights serves all tokens.
    """

    def __init__(self, blend: Blend, own: Any, first: PairTensor, second: PairTensor) -> None:
        super().__init__()
        self.blend, self.own, self.first, self.second = blend, own, first, second
        for name in ("gate_up_proj", "down_proj"):
            del own._parameters[name]

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of each token's experts at its λ."""
        source = self.blend.source
        if source is not WeightSource.MIXED:
            self.own.__dict__.update(gate_up_proj=self.first.plain(source), down_proj=self.second.plain(source))
            out: torch.Tensor = self.own(x, chosen, weights)
            return out
        count = chosen.shape[-1]
        # Sorted by expert, so that each expert's tokens are one run: `order` (tokens·k).
        experts, order = chosen.flatten().sort()
        tokens = order // count
        ends = torch.bincount(experts, minlength=self.first.ends.shape[1]).cumsum(0)
        inner = self.own._apply_gate(self._product(x[tokens], self.first, tokens, ends))
        parts = self._product(inner, self.second, tokens, ends) * weights.flatten()[order, None]
        placed = torch.empty_like(parts)
        placed[order] = parts
        return placed.view(len(x), count, -1).sum(dim=1).to(x.dtype)

    def _product(self, x: torch.Tensor, pair: PairTensor, tokens: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """Return W_e(λ)x for the expert e and the λ of each row of x: (rows, in) → (rows, out)."""
        groups = torch.cat([ends, ends + len(x)]).to(torch.int32)
        both = functional.grouped_mm(torch.cat([x, x]), pair.ends.flatten(0, 1).mT, offs=groups)
        return self.blend.mix(both[: len(x)], both[len(x) :], pair.group, tokens)
