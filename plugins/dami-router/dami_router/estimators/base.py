"""What an estimator of λ(q) is: the seam between the router and every way of estimating.

An estimator is given a query and answers with λ in [0, 1], the evidence that it rests on, and
its own name. It may ask servers (hence `async`), and may fail: the router puts a time limit on
it and walks down a declared chain that ends in a constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from dami_router.served import EstimationError, Servers

__all__ = ["AsksServers", "Estimate", "EstimationError", "Estimator", "Query"]


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


@runtime_checkable
class Estimator(Protocol):
    """Something that estimates λ(q). `name` is what configuration and response headers call it.

    An attribute `timeout` (seconds), where there is one, is the estimator's own limit in place of the chain's.
    """

    @property
    def name(self) -> str:
        """The estimator's name."""
        ...

    async def estimate(self, query: Query) -> Estimate:
        """Return λ(q) with its evidence; raises EstimationError where there is nothing to say."""
        ...


@runtime_checkable
class AsksServers(Protocol):
    """An estimator that asks servers: before the first query a router calls `bind`, and uses what that returns."""

    def bind(self, servers: Servers) -> Estimator:
        """Return the estimator with servers to ask."""
        ...
