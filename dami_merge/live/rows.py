"""The state of one sequence while the engine works on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dami_merge.live.generation import Event, FinishReason, PromptToken, Row
from dami_merge.live.sampling import Picked, Sampler
from dami_merge.live.spread import Vector
from dami_merge.live.text_stream import VisibleText
from dami_merge.live.thought_cap import ThinkTags, ThoughtCap

__all__ = ["LiveRow", "Share"]


class LiveRow:
    """The state of a row between two steps.

    `tokens`: its prompt and its answer so far; `length`: for how many of them keys and values are stored. `limit`: the
    most tokens it may generate. `scores`: those of the prompt's tokens so far, None if they were not requested.
    """

    def __init__(self, row: Row, vector: Vector, limit: int, tokenizer: Any, tags: ThinkTags | None = None) -> None:
        generation = row.generation
        self.row = row
        self.vector = vector
        self.limit = limit
        self.tokens = list(generation.prompt)
        self.length = 0
        most = generation.thinking_token_budget
        cap = ThoughtCap(tags, generation.prompt, most) if tags is not None and most is not None else None
        self.sampler = Sampler(generation, cap)
        self.text = VisibleText(_decoder(tokenizer, generation.skip_special_tokens), generation.stop)
        self.scores: list[PromptToken] | None = None
        if generation.prompt_log_probs is not None:
            self.scores = [PromptToken(self.tokens[0], None)]

    @property
    def read(self) -> bool:
        """Whether the whole prompt has been read."""
        return self.length >= len(self.row.generation.prompt)

    @property
    def written(self) -> int:
        """The number of tokens generated so far."""
        return len(self.tokens) - len(self.row.generation.prompt)

    @property
    def left(self) -> int:
        """The number of tokens it may still generate."""
        return self.limit - self.written

    def take_scores(self, past: int, scores: list[PromptToken]) -> None:
        """Store the scores of the prompt's tokens from `past` + 1 on; earlier scores for them are replaced."""
        if scores and self.scores is not None:
            self.scores[past + 1 :] = scores

    def write(self, picked: Picked, eos: frozenset[int], hidden_state: tuple[float, ...] | None = None) -> Event:
        """Append the next token; return its event."""
        first = self.written == 0
        self.tokens.append(picked.token)
        self.sampler.advance(picked.token)
        ended = picked.token in eos and not self.row.generation.ignore_eos
        # The end-of-text token is not part of the text, even if special tokens are shown.
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
            hidden_state=hidden_state,
        )

    def _reason(self, ended: bool) -> FinishReason | None:
        if ended or self.text.stopped:
            return "stop"
        return "length" if self.written >= self.limit else None


@dataclass(frozen=True, slots=True)
class Share:
    """A row's part of a step: its tokens `past` to `past + count`, at `start` among all tokens of the step."""

    live: LiveRow
    slot: int
    past: int
    count: int
    start: int

    @property
    def end(self) -> int:
        """For how many of the row's tokens keys and values are stored after the step."""
        return self.past + self.count

    @property
    def tokens(self) -> list[int]:
        """The tokens themselves."""
        return self.live.tokens[self.past : self.end]

    @property
    def last(self) -> int:
        """The place of the last token among all tokens of the step."""
        return self.start + self.count - 1

    @property
    def whole(self) -> bool:
        """Whether these are the row's last tokens, so that its next one follows from them."""
        return self.end == len(self.live.tokens)


def _decoder(tokenizer: Any, skip_special_tokens: bool) -> Any:
    if tokenizer is None:
        return lambda ids: ""  # noqa: ARG005
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
