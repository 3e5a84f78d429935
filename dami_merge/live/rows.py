"""One sequence while it is worked on."""

from __future__ import annotations

from typing import Any

from dami_merge.live.generation import Event, FinishReason, PromptToken, Row
from dami_merge.live.sampling import Picked, Sampler
from dami_merge.live.spread import Vector
from dami_merge.live.text import TextStream

__all__ = ["LiveRow"]


class LiveRow:
    """What is known of a row between two steps.

    `length`: tokens whose keys and values are stored. `limit`: tokens it may write. `scores`: those of the
    prompt's tokens so far, None where nobody asked.
    """

    def __init__(self, row: Row, vector: Vector, limit: int, tokenizer: Any) -> None:
        generation = row.generation
        self.row = row
        self.vector = vector
        self.limit = limit
        self.prompt = list(generation.prompt)
        self.length = 0
        self.last = -1
        self.written = 0
        self.sampler = Sampler(generation)
        self.text = TextStream(_decoder(tokenizer, generation.skip_special_tokens), generation.stop)
        self.scores: list[PromptToken] | None = [] if generation.prompt_log_probs is not None else None

    @property
    def read(self) -> bool:
        """Whether the whole prompt is read."""
        return self.length >= len(self.prompt)

    @property
    def left(self) -> int:
        """How many tokens it may still write."""
        return self.limit - self.written

    def write(self, picked: Picked, eos: frozenset[int]) -> Event:
        """Take the next token; return the event that says so."""
        first = self.written == 0
        self.last = picked.token
        self.written += 1
        self.sampler.advance()
        ended = picked.token in eos and not self.row.generation.ignore_eos
        # The token that ends a text is no part of it, even where special tokens are shown.
        text = "" if ended else self.text.push(picked.token)
        reason = self._reason(ended)
        return Event(
            self.row,
            picked.token,
            text + (self.text.finish() if reason else ""),
            picked.log_prob if self.row.generation.log_probs else None,
            picked.top,
            reason,
            tuple(self.scores) if first and self.scores is not None else None,
        )

    def _reason(self, ended: bool) -> FinishReason | None:
        if ended or self.text.stopped:
            return "stop"
        return "length" if self.written >= self.limit else None


def _decoder(tokenizer: Any, skip_special_tokens: bool) -> Any:
    if tokenizer is None:
        return lambda ids: ""  # noqa: ARG005
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
