"""What an estimator may call on servers: the log-probabilities of the two endpoints, and nothing else.

A router passes its `Servers` to every estimator with a method `bind`. This module holds only facts and protocols;
`upstream.estimator_calls` makes the calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from dami_router.errors import FailureError

if TYPE_CHECKING:
    from dami_router.estimators.query import Query

__all__ = [
    "Ability",
    "BusyError",
    "EstimationError",
    "HiddenState",
    "Probe",
    "Prompt",
    "Server",
    "Servers",
    "Token",
    "UnableError",
]

Ability = Literal["log_probs", "prompt_log_probs", "top_n", "hidden_states"]
"""The optional abilities of a server, by the names that health checks use."""


class EstimationError(FailureError):
    """An estimator has no result for this query; the chain falls back to the next one."""


class BusyError(EstimationError):
    """No server is available now; one may be later."""


class UnableError(EstimationError):
    """The server, as started, lacks an ability."""

    def __init__(self, message: str, lacks: Ability) -> None:
        super().__init__(message)
        self.lacks = lacks


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token: its text, natural log-probability (≤ 0), and those of the likeliest tokens, itself included.

    `top` is empty if it was not requested.
    """

    text: str = field(repr=False)
    logprob: float
    top: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Probe:
    """The first tokens of a greedy answer. `thinks`: the model itself opened a `<think>` block.

    `text` is the answer's text without end-of-text tokens; `spoken` counts the tokens that make it up.
    """

    text: str = field(repr=False)
    tokens: tuple[Token, ...]
    spoken: int
    thinks: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """A query after one server's chat template and tokenizer: token ids, and the text if the server returned it."""

    ids: tuple[int, ...] = field(repr=False)
    text: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class HiddenState:
    """The last hidden state of a prompt, in unit length, and the model that it is of, as its server names it."""

    vector: tuple[float, ...] = field(repr=False)
    model: str


class Server(Protocol):
    """One endpoint, on whichever of its replicas is healthy and least busy.

    All methods raise EstimationError if no replica gives a valid response within `timeout` seconds, UnableError if
    one lacks an ability.
    """

    @property
    def opens_think(self) -> bool:
        """Whether its chat template ends inside a `<think>` block."""
        ...

    def can(self, ability: Ability) -> bool | None:
        """Return whether some replica has the ability; None if unknown."""
        ...

    async def probe(self, query: Query, tokens: int, *, top: int = 0, timeout: float) -> Probe:
        """Generate at most `tokens` tokens greedily, with log-probabilities and `top` (0 to 5) alternatives."""
        ...

    async def prepare(self, query: Query, *, close: bool = False, timeout: float) -> Prompt:
        """Return the query as the server reads it; `close` ends the `<think>` block that its template opened."""
        ...

    async def score(self, prompt: Prompt, text: str, *, timeout: float) -> tuple[float, ...]:
        """Return the log-probability of each token of `text` after the prompt, in one prefill."""
        ...

    async def hidden(self, query: Query, *, timeout: float) -> HiddenState:
        """Return the state from which the first token of an answer would be chosen, in one prefill."""
        ...


class Servers(Protocol):
    """The endpoints: the variants of the smallest and the largest λ. None if there is only one variant."""

    @property
    def instruct(self) -> Server:
        """The Instruct endpoint."""
        ...

    @property
    def thinking(self) -> Server | None:
        """The Thinking endpoint."""
        ...
