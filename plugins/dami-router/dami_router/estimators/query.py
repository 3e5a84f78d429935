"""What an estimator is given and what it returns: a query, and λ(q) with its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

__all__ = ["Estimate", "Query"]


@dataclass(frozen=True, slots=True)
class Query:
    """What the router knows of a request when it estimates.

    `text` is what the user asks last, as plain text. `effort` is the request's own hint
    (`none`, `minimal`, `low`, `medium`, `high`), None where it gives none. `messages` is the whole
    chat as it came; `prompt` the text of a request without a chat, empty where it is not one text.
    """

    text: str
    effort: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = field(default=None, repr=False)
    prompt: str | None = field(default=None, repr=False)

    def chat(self) -> list[Mapping[str, Any]]:
        """Return the messages; where there are none, `text` as the user's only one."""
        return list(self.messages) if self.messages is not None else [{"role": "user", "content": self.text}]


@dataclass(frozen=True, slots=True)
class Estimate:
    """λ(q) in [0, 1], who says so, and why: `evidence` holds numbers and short words, never the query."""

    lambda_: float
    estimator: str
    evidence: Mapping[str, float | str] = field(default_factory=lambda: MappingProxyType({}))
