"""How to ask a server for log-probabilities: what the protocols have in common.

A way (`LogProbs`) is three steps: a greedy probe, the query as the server's own tokenizer reads it, and the
log-probabilities of a given text behind it. Everything that a server sends is validated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from dami_router.backends.backend import Post
from dami_router.estimators.log_probs import Ability, BusyError, EstimationError, Probe, Prompt, Token, UnableError
from dami_router.estimators.query import Query
from dami_router.messages.thinking import CLOSE, OPEN

__all__ = ["CLOSED", "LogProbs", "asked", "at", "made_probe", "number", "read_chat", "required", "whole_numbers"]

CLOSED = f"\n{CLOSE}\n\n"
"""Closes a `<think>` block that the template opened, before any thought; as Qwen3 writes it."""


class LogProbs(Protocol):
    """How to ask servers of one protocol. `model` is the server's own name for the model."""

    async def probe(self, post: Post, model: str, query: Query, tokens: int, top: int) -> Probe:
        """Generate at most `tokens` tokens greedily."""
        ...

    async def prepare(self, post: Post, model: str, query: Query, *, close: bool) -> Prompt:
        """Return the query as the server reads it."""
        ...

    async def score(self, post: Post, model: str, prompt: Prompt, text: str) -> tuple[float, ...]:
        """Return the log-probability of each token of `text` after the prompt."""
        ...


async def asked(post: Post, path: str, data: dict[str, Any]) -> Any:
    """Return the reply's JSON; raises BusyError for a status that may pass, EstimationError for any other but 200."""
    status, reply = await post(path, data)
    if status in (408, 424, 429) or status >= 500:
        raise BusyError(f"{path} returned status {status}")
    if status != 200 or reply is None:
        raise EstimationError(f"{path} returned status {status}" + ("" if reply is not None else " and no JSON"))
    return reply


def at(data: Any, *keys: str | int) -> Any:
    """Return the value at a path of keys and indexes in a reply; None where there is none."""
    for key in keys:
        try:
            data = data[key]
        except (LookupError, TypeError):
            return None
    return data


def required(data: Any, lacks: Ability, what: str) -> list[Any]:
    """Return a non-empty list; raises UnableError where the server sent none."""
    if not isinstance(data, list) or not data:
        raise UnableError(f"the server returned no {what}", lacks)
    return data


def number(value: Any, lacks: Ability) -> float:
    """Return a log-probability; raises UnableError for anything else. Slightly above 0 is rounding."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e5 <= value <= 1e-3:
        raise UnableError("the server returned invalid log-probabilities", lacks)
    return min(float(value), 0.0)


def whole_numbers(values: Any) -> tuple[int, ...]:
    """Return token ids; raises EstimationError for anything else."""
    if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
        raise EstimationError("the server's tokenizer returned no token ids")
    return tuple(values)


def read_chat(choice: Any) -> Probe:
    """Read a chat completion's choice with `logprobs`; TGI and OpenAI share the format."""
    content = required(at(choice, "logprobs", "content"), "log_probs", "log-probabilities")
    tokens = []
    for entry in content:
        top = at(entry, "top_logprobs") or []
        likeliest = tuple(number(at(one, "logprob"), "top_n") for one in top) if isinstance(top, list) else ()
        tokens.append(Token(str(at(entry, "token") or ""), number(at(entry, "logprob"), "log_probs"), likeliest))
    text = at(choice, "message", "content")
    # Servers that separate thoughts from answers use one name or the other; both mean that the model thinks.
    thoughts = at(choice, "message", "reasoning_content") or at(choice, "message", "reasoning")
    ended = at(choice, "finish_reason") in ("stop", "eos_token")
    return made_probe(text if isinstance(text, str) else "", tokens, ended=ended, thinks=bool(thoughts))


def made_probe(text: str, tokens: Sequence[Token], *, ended: bool, thinks: bool = False) -> Probe:
    """Return a probe; raises EstimationError for an empty answer."""
    # The last token of a finished answer is the end-of-text token, unless the server omits it.
    end = tokens[-1].text if tokens else ""
    spoken = len(tokens) - (ended and not (end and text.endswith(end)))
    thinks = thinks or text.lstrip().startswith(OPEN)
    if not thinks and (not text.strip() or spoken < 1):
        raise EstimationError("the answer is empty")
    return Probe(text, tuple(tokens), spoken, thinks)
