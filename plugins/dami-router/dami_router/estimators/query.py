"""The input and the output of an estimator: a query, and λ(q) with its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

__all__ = ["Estimate", "Query"]

_NONE: Mapping[str, float | str] = MappingProxyType({})


@dataclass(slots=True)  # not frozen: made for each request
class Query:
    """What an estimator may know of a request.

    `text` is the last user message, as plain text. `effort` is the request's reasoning effort
    (`none`, `minimal`, `low`, `medium`, `high`) or None. `messages` is the whole chat as received;
    `prompt` is the text of a request without a chat, empty if it is not a single text.
    """

    text: str
    effort: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = field(default=None, repr=False)
    prompt: str | None = field(default=None, repr=False)

    def chat(self) -> list[Mapping[str, Any]]:
        """Return the messages, or `text` as the only user message if there are none."""
        return list(self.messages) if self.messages is not None else [{"role": "user", "content": self.text}]


@dataclass(slots=True)  # not frozen: made for each request
class Estimate:
    """λ(q) in [0, 1], the estimator's name, and the evidence: numbers and short words, never the query."""

    lambda_: float
    estimator: str
    evidence: Mapping[str, float | str] = field(default_factory=lambda: _NONE)
