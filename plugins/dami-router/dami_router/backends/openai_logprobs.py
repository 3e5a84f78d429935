"""Log-probabilities from servers with OpenAI's routes.

Probes are OpenAI's own forms. Scoring needs what vLLM has beyond them: `/tokenize`, prompts as token ids, and
`prompt_logprobs`; other servers refuse or ignore it.
"""

from __future__ import annotations

from typing import Any

from dami_router.backends.backend import Post
from dami_router.backends.logprobs import CLOSED, asked, at, made_probe, number, read_chat, required, whole_numbers
from dami_router.estimators.log_probs import EstimationError, Probe, Prompt, Token, UnableError
from dami_router.estimators.query import Query

__all__ = ["OpenAILogProbs"]


class OpenAILogProbs:
    """For vLLM, and for any other server with OpenAI's routes as far as it supports them."""

    async def probe(self, post: Post, model: str, query: Query, tokens: int, top: int) -> Probe:
        """Probe as a chat, or as text."""
        greedy = {"model": model, "max_tokens": tokens, "temperature": 0}
        if query.prompt is None:
            body = {**greedy, "messages": query.chat(), "logprobs": True} | ({"top_logprobs": top} if top else {})
            return read_chat(at(await asked(post, "/v1/chat/completions", body), "choices", 0))
        body = {**greedy, "prompt": query.prompt, "logprobs": max(top, 1)}
        choice = at(await asked(post, "/v1/completions", body), "choices", 0)
        text = at(choice, "text")
        ended = at(choice, "finish_reason") == "stop"
        return made_probe(text if isinstance(text, str) else "", _tokens(at(choice, "logprobs"), top), ended=ended)

    async def prepare(self, post: Post, model: str, query: Query, *, close: bool) -> Prompt:
        """Template and tokenize with `/tokenize`."""
        if query.prompt is not None:
            return Prompt(await _ids(post, {"model": model, "prompt": query.prompt}))
        ids = await _ids(post, {"model": model, "messages": query.chat(), "add_generation_prompt": True})
        return Prompt(ids + (await _plain(post, model, CLOSED) if close else ()))

    async def score(self, post: Post, model: str, prompt: Prompt, text: str) -> tuple[float, ...]:
        """Score with one prefill of token ids; prompt and text are tokenized apart, so that no token spans both."""
        ids = prompt.ids + await _plain(post, model, text)
        body = {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        choice = at(await asked(post, "/v1/completions", body), "choices", 0)
        found = required(at(choice, "prompt_logprobs"), "prompt_log_probs", "log-probabilities of a prompt")
        if len(found) != len(ids):
            raise UnableError("the server returned log-probabilities of another prompt", "prompt_log_probs")
        first = len(prompt.ids)
        pairs = zip(found[first:], ids[first:], strict=True)
        return tuple(number(at(entry, str(id), "logprob"), "prompt_log_probs") for entry, id in pairs)


def _tokens(logprobs: Any, top: int) -> list[Token]:
    """The tokens of a text completion: lists side by side, the likeliest ones as a mapping."""
    values = required(at(logprobs, "token_logprobs"), "log_probs", "log-probabilities")
    made = []
    for i, value in enumerate(values):
        near = at(logprobs, "top_logprobs", i) if top else None
        likeliest = tuple(number(one, "top_n") for one in near.values()) if isinstance(near, dict) else ()
        made.append(Token(str(at(logprobs, "tokens", i) or ""), number(value, "log_probs"), likeliest))
    return made


async def _ids(post: Post, data: dict[str, Any]) -> tuple[int, ...]:
    return whole_numbers(at(await asked(post, "/tokenize", data), "tokens"))


async def _plain(post: Post, model: str, text: str) -> tuple[int, ...]:
    """The ids of a text that continues a prompt: without the tokens that begin one."""
    ids = await _ids(post, {"model": model, "prompt": text, "add_special_tokens": False})
    if not ids:
        raise EstimationError("the answer has no tokens")
    return ids
