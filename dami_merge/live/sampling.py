"""Choose the next token of each row from its logits, and compute log-probabilities.

A row's draw depends only on its own logits and its own random numbers, not on the rest of the batch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dami_merge.live.generation import Choice, Generation
from dami_merge.live.thought_cap import ThoughtCap

__all__ = ["Picked", "Sampler", "distribution", "penalise", "pick", "score"]


class Sampler:
    """One row's random numbers, the tokens that its penalties apply to, and the cap on its thoughts."""

    def __init__(self, generation: Generation, cap: ThoughtCap | None = None) -> None:
        self.generation = generation
        self._cap = cap
        # Seeded with text, because Python gives 1 and 1.0, or −1 and 1, the same stream.
        self._random = random.Random(None if generation.seed is None else f"dami:{generation.seed}")  # noqa: S311
        self.number = self._random.random()
        """The row's next number in [0, 1)."""
        self._written: list[int] = []
        """Tokens that `_counts` does not include yet."""
        self._places: dict[int, int] = {}
        self._ids: torch.Tensor | None = None
        self._counts: torch.Tensor | None = None

    def advance(self, token: int) -> None:
        """Move on to the next number: `token` was generated. A failed pass is repeated with the same number."""
        self.number = self._random.random()
        if self._cap is not None:
            self._cap.advance(token)
        if self.generation.penalised:
            self._written.append(token)

    @property
    def forced(self) -> int | None:
        """The token that the row must write next, whatever its logits are; None if they decide."""
        return None if self._cap is None else self._cap.forced

    def seen(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens that the prompt or the answer holds, and how often the answer holds each: (n,) both.

        They are kept on the device of `like` from one token to the next, and grow with the answer.
        """
        if self._ids is None or self._counts is None:
            self._places = {token: place for place, token in enumerate(dict.fromkeys(self.generation.prompt))}
            known = torch.tensor(list(self._places), dtype=torch.int64, device=like.device)
            self._ids = torch.cat([known, torch.zeros_like(known)])
            self._counts = torch.zeros(len(self._ids), dtype=like.dtype, device=like.device)
        for token in self._written:
            place = self._places.setdefault(token, len(self._places))
            if place == len(self._ids):
                self._ids, self._counts = (
                    torch.cat([part, torch.zeros_like(part)]) for part in (self._ids, self._counts)
                )
            self._ids[place] = token
            self._counts[place] += 1
        self._written.clear()
        return self._ids[: len(self._places)], self._counts[: len(self._places)]


@dataclass(frozen=True, slots=True)
class Picked:
    """A row's next token, with its log-probability and alternatives if they were requested."""

    token: int
    log_prob: float | None = None
    top: tuple[Choice, ...] = ()


def pick(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[Picked]:
    """Return the next token of each row; `logits` (rows, vocabulary) in any floating dtype."""
    logits = logits.float() if logits.dtype != torch.float64 else logits
    penalised = penalise(logits, samplers)
    tokens = penalised.argmax(dim=-1)
    drawing = [i for i, sampler in enumerate(samplers) if sampler.generation.temperature > 0.0]
    if drawing:
        tokens[drawing] = _draw(penalised[drawing], [samplers[i] for i in drawing])
    asked = [i for i, s in enumerate(samplers) if s.generation.log_probs or s.generation.top_log_probs]
    ids = [token if s.forced is None else s.forced for token, s in zip(tokens.tolist(), samplers, strict=True)]
    if not asked:
        return [Picked(token) for token in ids]
    most = max(samplers[i].generation.top_log_probs for i in asked)
    scored = dict(zip(asked, score(logits[asked], [ids[i] for i in asked], most), strict=True))
    return [_picked(ids[i], scored.get(i), sampler.generation) for i, sampler in enumerate(samplers)]


def score(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[Picked]:
    """Return the log-probability of one token per row, and the `top` likeliest tokens of each row."""
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


def penalise(logits: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Return logits with each row's penalties: the repetition penalty first, as vLLM does."""
    rows = [i for i, sampler in enumerate(samplers) if sampler.generation.penalised]
    if not rows:
        return logits
    ids, counts = zip(*(samplers[i].seen(logits) for i in rows), strict=True)
    sizes = torch.tensor([len(some) for some in ids], device=logits.device)

    def each(values: Sequence[float]) -> torch.Tensor:
        # A row's setting for each of its tokens.
        return torch.tensor(values, dtype=logits.dtype, device=logits.device).repeat_interleave(sizes)

    asked = [samplers[i].generation for i in rows]
    at = torch.tensor(rows, device=logits.device).repeat_interleave(sizes), torch.cat(ids)
    chosen, count = logits[at], torch.cat(counts)
    factor = each([g.repetition_penalty for g in asked])
    chosen = torch.where(chosen < 0, chosen * factor, chosen / factor)
    chosen -= each([g.frequency_penalty for g in asked]) * count
    chosen -= each([g.presence_penalty for g in asked]) * (count > 0)
    # A copy: the reported log-probabilities come from the logits without penalties.
    penalised = logits.clone()
    penalised[at] = chosen
    return penalised


def _draw(logits: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Draw one token for each row."""
    probabilities, order = distribution(logits, [sampler.generation for sampler in samplers])
    cumulative = probabilities.cumsum(dim=-1)
    marks = _column([sampler.number for sampler in samplers], logits) * cumulative[:, -1:]
    rank = torch.searchsorted(cumulative, marks, right=True)
    # Rounding may put the mark at the very end, where tokens have no probability left. Logits that are NaN leave
    # nothing to choose from; that row continues with any token, and the others are not affected.
    ranks = torch.arange(logits.shape[-1], device=logits.device)
    last = torch.where(probabilities > 0, ranks, 0).amax(dim=-1, keepdim=True)
    return order.gather(-1, rank.minimum(last))[:, 0]


def distribution(logits: torch.Tensor, asked: Sequence[Generation]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what each row draws from: weights (rows, vocabulary) from the likeliest token on, and the tokens.

    Temperature, then top_k, top_p, min_p and typical_p, as Transformers orders them. The weights need not add up to 1.
    """
    temperatures = _column([g.temperature for g in asked], logits)
    size = logits.shape[-1]
    # Relative to the likeliest token, which is 0 at any temperature. Stable, so that equal logits keep their order.
    ordered, order = logits.double().sort(dim=-1, descending=True, stable=True)
    scaled = (ordered - ordered[:, :1]) / temperatures
    ranks = torch.arange(size, device=logits.device)
    kept = ranks < _column([float(g.top_k or size) for g in asked], logits)
    # fp64: the rounding error of 150,000 summed fp32 probabilities exceeds the unlikely ones.
    probabilities = scaled.masked_fill(~kept, -torch.inf).softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    # The sum excludes the token itself, so the token that crosses top_p is kept, and the first one always is.
    dropped = (before >= _column([g.top_p for g in asked], logits)) & (ranks > 0)
    if any(g.min_p for g in asked):
        dropped |= (scaled.exp() < _column([g.min_p for g in asked], logits)) & (ranks > 0)
    probabilities = probabilities.masked_fill(dropped, 0.0)
    if any(g.typical_p < 1.0 for g in asked):
        probabilities = _typical(probabilities, _column([g.typical_p for g in asked], logits))
    return probabilities, order


def _typical(probabilities: torch.Tensor, masses: torch.Tensor) -> torch.Tensor:
    """Keep the tokens whose surprise is nearest to the expected one, until their probabilities reach `masses`."""
    normal = probabilities / probabilities.sum(dim=-1, keepdim=True)
    surprise = -normal.log()
    expected = (normal * surprise).nansum(dim=-1, keepdim=True)
    distance, nearest = (surprise - expected).abs().sort(dim=-1, stable=True)
    reached = normal.gather(-1, nearest).cumsum(dim=-1)
    last = (reached < masses).sum(dim=-1, keepdim=True).clamp_(max=probabilities.shape[-1] - 1)
    too_far = (surprise - expected).abs() > distance.gather(-1, last)
    return probabilities.masked_fill(too_far & (masses < 1.0), 0.0)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]
