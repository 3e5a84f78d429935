"""One query on one variant: the answer without thoughts, its tokens and how it ended; or why it failed."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from dami_router.messages.request import read_request
from dami_router.messages.thinking import CLOSE, split_thinking
from dami_router.messages.tokens import TokenCount
from dami_router.router import Decision, NoAnswerError, NoVariantError, Router

__all__ = ["RolloutTarget", "UnusableError", "VariantAnswer", "ask"]

_HEADERS = {"content-type": "application/json"}


@dataclass(frozen=True)
class RolloutTarget:
    """What answers at λ: a variant's id, or `live`, without fallback; `model` is its name for clients.

    `cap`: the limit of its thinking tokens, None without one.
    """

    lambda_: float
    variant: str
    model: str
    opens_think: bool = False
    cap: int | None = None


@dataclass(frozen=True)
class VariantAnswer:
    """An answer: `text` as received, `answer` without thoughts; tokens generated; seconds."""

    text: str
    answer: str
    think: bool
    tokens: int
    finish_reason: str | None
    latency_s: float


class UnusableError(Exception):
    """No answer. `final`: the same request would fail again; `retry_after`: the server's request, in seconds."""

    def __init__(self, why: str, *, final: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(why)
        self.why, self.final, self.retry_after = why, final, retry_after


async def ask(router: Router, target: RolloutTarget, body: dict[str, Any]) -> VariantAnswer:
    """Send one chat to one variant, with the router's own retries; raises UnusableError if there is no answer."""
    request = read_request("/v1/chat/completions", "openai", json.dumps(body).encode(), _HEADERS)
    decision = Decision(target.lambda_, target.variant, "pinned", 0.0, (target.variant,))
    begun = time.perf_counter()
    try:
        answered = await router.send(request, decision)
    except NoVariantError:
        raise UnusableError("no server is available") from None
    except NoAnswerError as error:
        raise UnusableError(error.last.why, retry_after=_seconds(error.last.retry_after)) from None
    try:
        status, reply = answered.reply.status, answered.reply.first
    finally:
        answered.close()
    if status != 200:
        raise UnusableError(f"status {status}: {_said(reply)}", final=True)
    return _read(reply, target, time.perf_counter() - begun)


def _read(reply: bytes, target: RolloutTarget, seconds: float) -> VariantAnswer:
    try:
        choice = json.loads(reply)["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text = message.get("content") or ""
        separate = message.get("reasoning_content") or message.get("reasoning")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UnusableError(f"not a chat completion: {_said(reply)}") from None
    counter = TokenCount(stream=False)
    counter.feed(reply)
    tokens = counter.result()
    if tokens is None:
        raise UnusableError("the response has no token count", final=True)
    if not isinstance(text, str):
        raise UnusableError("not a chat completion: its content is not text")
    finish = finish if isinstance(finish, str) else None
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate is not valid in a JSON line
    if isinstance(separate, str) and separate:
        separate = separate.encode("utf-8", "replace").decode()
        return VariantAnswer(f"<think>{separate}{CLOSE}{text}", text, True, tokens, finish, seconds)
    # A block that the template opened, and that was neither closed nor cut off, was not used for thoughts.
    opened = target.opens_think and (CLOSE in text or finish == "length")
    thoughts, answer = split_thinking(text, opened)
    return VariantAnswer(text, answer, thoughts is not None, tokens, finish, seconds)


def _said(reply: bytes) -> str:
    """Return a server's error message, shortened; it may quote the request, so it is shown but never stored."""
    try:
        error = json.loads(reply)
        error = error.get("error", error.get("detail", error)) if isinstance(error, dict) else error
        error = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, RecursionError):
        error = reply[:300].decode(errors="replace")
    return f"{error!s:.200}".replace("\n", " ")


def _seconds(value: str | None) -> float:
    return float(value) if value and value.isascii() and value.isdigit() else 0.0
