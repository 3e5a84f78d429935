"""A limit on one row's thinking tokens: when it is reached, the `<think>` block is closed and the answer follows.

It counts as vLLM does for its `thinking_token_budget`: the tokens after `<think>`, those in the prompt included, and
not the closing tag itself. The tags are sequences of token ids; most tokenizers have one token for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ThinkTags", "ThoughtCap"]


@dataclass(frozen=True, slots=True)
class ThinkTags:
    """The token ids of `<think>` and `</think>`."""

    opening: tuple[int, ...]
    closing: tuple[int, ...]


class ThoughtCap:
    """Follows one row: `forced` is the token that it must write next, None if it is free."""

    def __init__(self, tags: ThinkTags, prompt: Sequence[int], most: int) -> None:
        self._tags, self._most = tags, most
        self._tail: list[int] = []
        self._thinking = False
        self._count = 0
        self.forced: int | None = None
        for token in prompt:
            self.advance(token)

    def advance(self, token: int) -> None:
        """Note a token of the prompt or the answer."""
        longest = max(len(self._tags.opening), len(self._tags.closing))
        self._tail = [*self._tail, token][-longest:]
        if self._ends_with(self._tags.closing):
            self._thinking = False
        elif self._thinking:
            self._count += 1
        elif self._ends_with(self._tags.opening):
            # A second block gets no new allowance.
            self._thinking = True
        self.forced = self._next_of_closing() if self._thinking and self._count >= self._most else None

    def _ends_with(self, tag: tuple[int, ...]) -> bool:
        return tuple(self._tail[-len(tag) :]) == tag

    def _next_of_closing(self) -> int:
        """Return the tag's token that follows the part of it which is there already."""
        tag = self._tags.closing
        begun = next((n for n in range(len(tag) - 1, 0, -1) if tuple(self._tail[-n:]) == tag[:n]), 0)
        return tag[begun]
