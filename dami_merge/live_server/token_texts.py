"""Format tokens and their log-probabilities for replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dami_merge.live import Choice

__all__ = ["Written"]

_LEAST = -9999.0
"""vLLM's stand-in for −∞, which JSON does not have."""


class Written:
    """Formats tokens with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, including special ones."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def special(self, token: int) -> bool:
        """Tell whether a token is special."""
        return token in self._tokenizer.all_special_ids

    def chat_logprobs(
        self, tokens: Sequence[int], values: Sequence[float], tops: Sequence[Sequence[Choice]]
    ) -> dict[str, Any]:
        """Return the `logprobs` of a chat choice."""
        rows = zip(tokens, values, tops, strict=True)
        return {
            "content": [
                {**self._entry(token, value), "top_logprobs": [self._entry(*choice) for choice in top]}
                for token, value, top in rows
            ],
            "refusal": None,
        }

    def text_logprobs(
        self, tokens: Sequence[int], values: Sequence[float | None], tops: Sequence[Sequence[Choice]], offset: int
    ) -> dict[str, Any]:
        """Return the `logprobs` of a text completion's choice; the first token of a prompt has none."""
        texts = [self.text([token]) for token in tokens]
        offsets = [offset]
        for text in texts:
            offsets.append(offsets[-1] + len(text))
        return {
            "text_offset": offsets[:-1],
            "tokens": texts,
            "token_logprobs": [None if value is None else finite(value) for value in values],
            "top_logprobs": [
                None if value is None else self._named([*top, (token, value)])
                for token, value, top in zip(tokens, values, tops, strict=True)
            ],
        }

    def prompt_entry(self, token: int, value: float | None, top: Sequence[Choice]) -> dict[str, Any] | None:
        """Return one token of vLLM's `prompt_logprobs`: itself and its alternatives, by id; None for the first.

        `rank` is known only if the token is among the requested alternatives.
        """
        if value is None:
            return None
        ranks = {choice[0]: i + 1 for i, choice in enumerate(top)}
        return {
            str(id): {"logprob": finite(log_prob), "rank": ranks.get(id), "decoded_token": self.text([id])}
            for id, log_prob in dict([(token, value), *top]).items()
        }

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        text = self.text([token])
        return {"token": text, "logprob": finite(value), "bytes": list(text.encode("utf-8", "replace"))}

    def _named(self, choices: Sequence[Choice]) -> dict[str, float]:
        found: dict[str, float] = {}
        for token, value in choices:
            # Two tokens may share a text, for example two incomplete characters: keep the likelier one.
            found.setdefault(self.text([token]), finite(value))
        return found


def finite(value: float) -> float:
    """Return a log-probability that JSON can represent."""
    return max(value, _LEAST)
