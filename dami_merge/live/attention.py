"""Attention over rows of different lengths in one pass, and the cache of their keys and values.

A step is one sequence of tokens, (1, tokens): first one token of each row that is generating, then spans of the
prompts that are being read. Linear layers never see padding. Only attention separates the rows, and that happens
here. The keys and values of row i are slot i of one block per layer. So one call of PyTorch's attention serves all
generating rows, with a mask where their lengths differ; each span of a prompt is a call of its own.

This is registered with Transformers as an attention implementation, and calls Transformers' own sdpa attention.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["ATTENTION", "ForwardStep", "KeyValues", "RowSpan", "register"]

ATTENTION = "dami_live"
_CHUNK = 128
_SPARE = 4


@dataclass(frozen=True, slots=True)
class RowSpan:
    """Tokens `past` to `past + count` of the prompt of the row in `slot`."""

    slot: int
    past: int
    count: int


@dataclass(eq=False)
class ForwardStep:
    """One pass: a token for each of the first `len(lengths)` slots, then spans of prompts.

    `lengths[i]` is the number of tokens that slot i holds before the pass.
    """

    lengths: list[int]
    runs: list[RowSpan]
    cache: KeyValues
    _masks: dict[tuple[int | None, int | None], torch.Tensor | None] = field(default_factory=dict)
    _positions: torch.Tensor | None = None
    _slots: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """The number of tokens in the pass."""
        return len(self.lengths) + sum(run.count for run in self.runs)

    def positions(self) -> torch.Tensor:
        """Return each token's position in its row, (tokens,)."""
        if self._positions is None:
            ids = [*self.lengths, *(p for run in self.runs for p in range(run.past, run.past + run.count))]
            self._positions = torch.tensor(ids, device=self.cache.device)
        return self._positions

    def slots(self) -> torch.Tensor:
        """Return the slots of the generating rows, (rows,)."""
        if self._slots is None:
            self._slots = torch.arange(len(self.lengths), device=self.cache.device)
        return self._slots

    def writing_mask(self, window: int | None) -> torch.Tensor | None:
        """Return which positions each generating row sees, (rows, 1, 1, longest); None if it sees all."""
        key = (None, window)
        if key not in self._masks:
            longest = max(self.lengths) + 1
            if min(self.lengths) + 1 == longest and (window is None or longest <= window):
                self._masks[key] = None
            else:
                at = self.positions()[: len(self.lengths), None]
                self._masks[key] = _visible(at, longest, window)[:, None, None]
        return self._masks[key]

    def reading_mask(self, index: int, window: int | None) -> torch.Tensor | None:
        """Return what each token of a span sees, (1, 1, count, past + count); None if a causal mask is right."""
        run = self.runs[index]
        if run.past == 0 and (window is None or run.count <= window):
            return None
        key = (index, window)
        if key not in self._masks:
            start = len(self.lengths) + sum(r.count for r in self.runs[:index])
            at = self.positions()[start : start + run.count, None]
            self._masks[key] = _visible(at, run.past + run.count, window)[None, None]
        return self._masks[key]


class KeyValues:
    """The keys and values of all live rows: two blocks (slots, heads, positions, features) per layer.

    Blocks grow with the number of rows and with the longest row, one layer at a time. A block that is four times as
    large as necessary is replaced, and all blocks are freed when the last row is gone.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._blocks: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._slots = 0
        self._positions = 0

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return sum(block.nbytes for pair in self._blocks.values() for block in pair)

    def reserve(self, slots: int, positions: int) -> None:
        """Set how many rows of what length the next pass needs; the pass itself allocates the memory."""
        self._slots = slots
        self._positions = -(-positions // _CHUNK) * _CHUNK

    def layer(self, index: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's blocks, large enough for the pass.

        `key` and `value`, (1, heads, tokens, features), set the shape and dtype of new blocks.
        """
        have = self._blocks.get(index)
        if have is None or not self._fits(have[0]):
            # If memory runs out here, this layer keeps its block and those before it have grown: both are valid.
            have = (self._grown(have[0] if have else None, key), self._grown(have[1] if have else None, value))
            self._blocks[index] = have
        return have

    def _fits(self, block: torch.Tensor) -> bool:
        slots, _, positions, _ = block.shape
        if slots < self._slots or positions < self._positions:
            return False
        # A long row that is gone should not keep memory from the others.
        return slots * positions <= _SPARE * self._slots * self._positions

    def drop(self, slot: int, live: int) -> None:
        """Remove a row; the rows behind it, of `live` in all, move up by one."""
        for pair in self._blocks.values():
            for block in pair:
                last = min(live, block.shape[0]) - 1
                if slot <= last:
                    for i in range(slot, last):
                        block[i].copy_(block[i + 1])
                    # Stale numbers are masked, but 0·NaN is NaN: no number of a row may reach a later row.
                    block[last].zero_()
        if live == 1:
            self._blocks.clear()

    def _grown(self, old: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        slots, positions = self._slots, self._positions
        if old is not None and positions > old.shape[2]:
            # Grow ahead of need, so that a long answer does not copy its past every few tokens.
            positions = max(positions, old.shape[2] * 5 // 4)
        made = like.new_zeros((slots, like.shape[1], positions, like.shape[3]))
        if old is not None:
            rows, columns = min(slots, old.shape[0]), min(positions, old.shape[2])
            made[:rows, :, :columns] = old[:rows, :, :columns]
        return made


def register() -> None:
    """Register this attention with Transformers under its name; calling it again is harmless."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001
    *,
    live: ForwardStep,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend within each row: query (1, heads, tokens, features) → (1, tokens, heads, features)."""
    keys, values = live.cache.layer(module.layer_idx, key, value)
    parts = []
    rows = len(live.lengths)
    if rows:
        slots, at = live.slots(), live.positions()[:rows]
        keys[slots, :, at], values[slots, :, at] = key[0, :, :rows].transpose(0, 1), value[0, :, :rows].transpose(0, 1)
        longest = max(live.lengths) + 1
        out = _attend(
            module, query[0, :, :rows].transpose(0, 1)[:, :, None], keys[:rows, :, :longest],
            values[:rows, :, :longest], live.writing_mask(sliding_window), scaling, softcap,
        )  # fmt: skip
        parts.append(out.transpose(0, 1))
    start = rows
    for index, run in enumerate(live.runs):
        here, there = slice(start, start + run.count), slice(run.past, run.past + run.count)
        keys[run.slot, :, there], values[run.slot, :, there] = key[0, :, here], value[0, :, here]
        mask = live.reading_mask(index, sliding_window)
        seen = slice(0, run.past + run.count)
        # Without a mask the span starts at position 0, and its own keys are all that it sees.
        k = key[:, :, here] if mask is None else keys[run.slot, None, :, seen]
        v = value[:, :, here] if mask is None else values[run.slot, None, :, seen]
        parts.append(_attend(module, query[:, :, here], k, v, mask, scaling, softcap))
        start += run.count
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)), None


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """Attend: (rows, heads, tokens, features) → (rows, tokens, heads, features); causal if there is no mask."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if softcap is not None:
        return _softcapped(query, key, value, mask, scaling, softcap)
    out: torch.Tensor = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)[0]
    return out


def _softcapped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """Attend with scores capped at ±softcap, which PyTorch's attention does not support."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = (scores / softcap).tanh() * softcap
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2)


def _visible(at: torch.Tensor, length: int, window: int | None) -> torch.Tensor:
    """Return which of `length` positions each position `at` (n, 1) sees: (n, length)."""
    positions = torch.arange(length, device=at.device)
    seen = positions <= at
    return seen if window is None else seen & (positions > at - window)
