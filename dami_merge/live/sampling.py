"""The next token of each row from its logits, and log-probabilities.

A row's draw depends on its own logits and its own random numbers only, whatever shares its batch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dami_merge.live.generation import Choice, Generation

__all__ = ["Picked", "Sampler", "pick", "score"]


class Sampler:
    """The random numbers of one row."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        # Seeded with text: Python's hash of numbers gives 1 and 1.0, or −1 and 1, the same stream.
        self._random = random.Random(None if generation.seed is None else f"dami:{generation.seed}")  # noqa: S311
        self.number = self._random.random()
        """The row's next number in [0, 1)."""

    def advance(self) -> None:
        """Go on to the next number: the token is written. A pass that broke off can be made again with the same."""
        self.number = self._random.random()


@dataclass(frozen=True, slots=True)
class Picked:
    """A row's next token, with what was asked about it."""

    token: int
    log_prob: float | None = None
    top: tuple[Choice, ...] = ()


def pick(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[Picked]:
    """Return the next token of each row; `logits` (rows, vocabulary) in any floating dtype."""
    logits = logits.float() if logits.dtype != torch.float64 else logits
    tokens = logits.argmax(dim=-1)
    drawing = [i for i, sampler in enumerate(samplers) if sampler.generation.temperature > 0.0]
    if drawing:
        tokens[drawing] = _draw(logits[drawing], [samplers[i] for i in drawing])
    asked = [i for i, s in enumerate(samplers) if s.generation.log_probs or s.generation.top_log_probs]
    ids = tokens.tolist()
    if not asked:
        return [Picked(token) for token in ids]
    most = max(samplers[i].generation.top_log_probs for i in asked)
    scored = dict(zip(asked, score(logits[asked], [ids[i] for i in asked], most), strict=True))
    return [_picked(ids[i], scored.get(i), sampler.generation) for i, sampler in enumerate(samplers)]


def score(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[Picked]:
    """Return the log-probability of one token a row, with the `top` likeliest of the row beside it."""
    log_probs = logits.float().log_softmax(dim=-1) if logits.dtype != torch.float64 else logits.log_softmax(dim=-1)
    chosen = log_probs.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    if not top:
        return [Picked(token, value) for token, value in zip(tokens, chosen, strict=True)]
    values, ids = (part.tolist() for part in log_probs.topk(min(top, log_probs.shape[-1]), dim=-1))
    pairs = [tuple(zip(i, v, strict=True)) for i, v in zip(ids, values, strict=True)]
    return [Picked(token, value, likeliest) for token, value, likeliest in zip(tokens, chosen, pairs, strict=True)]


def _picked(token: int, scored: Picked | None, generation: Generation) -> Picked:
    if scored is None:
        return Picked(token)
    return Picked(token, scored.log_prob, scored.top[: generation.top_log_probs])


def _draw(logits: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Draw one token a row: temperature, then top_k, then top_p."""
    asked = [sampler.generation for sampler in samplers]
    temperatures = _column([g.temperature for g in asked], logits)
    size = logits.shape[-1]
    # From the likeliest on, which is 0 at any temperature. Stable, so that equal logits keep their order.
    ordered, order = logits.double().sort(dim=-1, descending=True, stable=True)
    scaled = (ordered - ordered[:, :1]) / temperatures
    ranks = torch.arange(size, device=logits.device)
    kept = ranks < _column([float(g.top_k or size) for g in asked], logits)
    # fp64: a running sum of 150,000 probabilities in fp32 would be off by more than the unlikely ones weigh.
    probabilities = scaled.masked_fill(~kept, -torch.inf).softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    # Measured before the token itself: the one that crosses top_p is in, and so is always the first.
    probabilities = probabilities.masked_fill((before >= _column([g.top_p for g in asked], logits)) & (ranks > 0), 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    marks = _column([sampler.number for sampler in samplers], logits) * cumulative[:, -1:]
    rank = torch.searchsorted(cumulative, marks, right=True).clamp_(max=size - 1)
    # Rounding may put the mark at the very end, where tokens have no probability left. A model that has lost its
    # numbers (NaN) leaves nothing to choose from; its row goes on with any token, the others with theirs.
    rank = rank.minimum((probabilities > 0).sum(dim=-1, keepdim=True) - 1).clamp_(min=0)
    return order.gather(-1, rank)[:, 0]


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]
