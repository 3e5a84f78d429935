"""What an estimator may ask of the servers: the two endpoints, their log-probabilities, and nothing else.

A router hands its `Servers` to every estimator that has a method `bind`. Only the facts and protocols are here;
`endpoints` asks real servers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from dami_router.errors import FailureError

if TYPE_CHECKING:
    from dami_router.estimators.query import Query

__all__ = ["Ability", "BusyError", "EstimationError", "Probe", "Prompt", "Server", "Servers", "Token", "UnableError"]

Ability = Literal["log_probs", "prompt_log_probs", "top_n"]
"""What a server may or may not be able to give, by the names under which it was probed."""


class EstimationError(FailureError):
    """An estimator cannot say anything about this query; the next one in the chain is asked."""


class BusyError(EstimationError):
    """No server answers now; one may later."""


class UnableError(EstimationError):
    """The server answers, and does not give what was asked: not with the way it was started."""

    def __init__(self, message: str, lacks: Ability) -> None:
        super().__init__(message)
        self.lacks = lacks


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token: its text, natural log-probability (≤ 0), and those of the likeliest ones, its own included.

    `top` is empty where it was not asked for.
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
    """A query as one server's chat template and tokenizer have it: token ids, and the text where that was given."""

    ids: tuple[int, ...] = field(repr=False)
    text: str = field(default="", repr=False)


class Server(Protocol):
    """One endpoint, on whichever of its replicas is healthy and least busy.

    All methods raise EstimationError where no replica answers as it should within `timeout` seconds, UnableError where
    one lacks an ability.
    """

    @property
    def opens_think(self) -> bool:
        """Whether its chat template ends inside a `<think>` block."""
        ...

    def can(self, ability: Ability) -> bool | None:
        """Return whether some replica has the ability; None where it is unknown."""
        ...

    async def probe(self, query: Query, tokens: int, *, top: int = 0, timeout: float) -> Probe:
        """Generate at most `tokens` tokens greedily, with log-probabilities; `top` likeliest ones of each (0 to 5)."""
        ...

    async def prepare(self, query: Query, *, close: bool = False, timeout: float) -> Prompt:
        """Return the query as the server would read it; `close` ends the `<think>` block that its template opened."""
        ...

    async def score(self, prompt: Prompt, text: str, *, timeout: float) -> tuple[float, ...]:
        """Return the log-probability of each token of `text` after the prompt, in one prefill."""
        ...


class Servers(Protocol):
    """The endpoints: the variants of the smallest and of the largest λ. None where there is only one variant."""

    @property
    def instruct(self) -> Server:
        """The endpoint that answers at once."""
        ...

    @property
    def thinking(self) -> Server | None:
        """The endpoint that thinks."""
        ...
