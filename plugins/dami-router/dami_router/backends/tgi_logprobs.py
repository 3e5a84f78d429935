"""Log-probabilities from Text Generation Inference.

- A probe goes to `/v1/chat/completions` with `logprobs`, or, for a text without a chat, to `/generate` with
  `details` (`/v1/completions` never has any). Temperature 0, or `parameters` at all, is greedy.
- A prompt is templated by `/chat_tokenize`. It is then text for `/generate`, which puts the tokenizer's own
  beginning-of-text token before every input: where the template has one too, it is removed.
- Scoring is one `/generate` with `decoder_input_details` and one new token (0 is refused). Its `prefill` is empty, with
  status 200, unless the server runs with --enable-prefill-logprobs; the first entry's logprob is null.
"""

from __future__ import annotations

from typing import Any

from dami_router.backends.backend import Post
from dami_router.backends.logprobs import CLOSED, asked, at, made_probe, number, read_chat, required, whole_numbers
from dami_router.estimators.log_probs import EstimationError, Probe, Prompt, Token
from dami_router.estimators.query import Query

__all__ = ["TgiLogProbs"]

_MODEL = "tgi"
"""TGI takes any other name for an adapter's."""


class TgiLogProbs:
    """For TGI, which ignores `model`."""

    async def probe(self, post: Post, model: str, query: Query, tokens: int, top: int) -> Probe:  # noqa: ARG002
        """Probe as a chat, or as text."""
        if query.prompt is not None:
            return await self._probe_text(post, query.prompt, tokens, top)
        body = {"model": _MODEL, "messages": query.chat(), "max_tokens": tokens, "temperature": 0, "logprobs": True}
        body |= {"top_logprobs": top} if top else {}
        return read_chat(at(await asked(post, "/v1/chat/completions", body), "choices", 0))

    async def _probe_text(self, post: Post, text: str, tokens: int, top: int) -> Probe:
        parameters = {"max_new_tokens": tokens, "do_sample": False, "details": True, "return_full_text": False}
        parameters |= {"top_n_tokens": top} if top else {}
        reply = await asked(post, "/generate", {"inputs": text, "parameters": parameters})
        details = at(reply, "details")
        found = required(at(details, "tokens"), "log_probs", "log-probabilities")
        likeliest = at(details, "top_tokens")
        made = []
        for i, entry in enumerate(found):
            others = at(likeliest, i)
            near = tuple(number(at(one, "logprob"), "top_n") for one in others) if isinstance(others, list) else ()
            made.append(Token(str(at(entry, "text") or ""), number(at(entry, "logprob"), "log_probs"), near))
        answer = at(reply, "generated_text")
        ended = at(details, "finish_reason") == "eos_token"
        return made_probe(answer if isinstance(answer, str) else "", made, ended=ended)

    async def prepare(self, post: Post, model: str, query: Query, *, close: bool) -> Prompt:  # noqa: ARG002
        """Apply the template and tokenize; the result is what `/generate` will read."""
        if query.prompt is not None:
            return Prompt(await _ids(post, query.prompt), query.prompt)
        chat = await asked(post, "/chat_tokenize", {"model": _MODEL, "messages": query.chat()})
        text, first = at(chat, "templated_text"), at(chat, "tokenize_response", 0)
        if not isinstance(text, str) or not text:
            raise EstimationError("/chat_tokenize returned no text")
        text += CLOSED if close else ""
        ids = await _ids(post, text)
        begin = at(first, "text")
        doubled = ids[:2] == (at(first, "id"),) * 2 and at(chat, "tokenize_response", 1, "id") != at(first, "id")
        if doubled and isinstance(begin, str) and text.startswith(begin):
            return Prompt(ids[1:], text[len(begin) :])
        return Prompt(ids, text)

    async def score(self, post: Post, model: str, prompt: Prompt, text: str) -> tuple[float, ...]:  # noqa: ARG002
        """Score with one prefill; raises EstimationError where a token spans prompt and text."""
        parameters = {"max_new_tokens": 1, "do_sample": False, "details": True, "decoder_input_details": True}
        reply = await asked(post, "/generate", {"inputs": prompt.text + text, "parameters": parameters})
        prefill = required(at(reply, "details", "prefill"), "prompt_log_probs", "log-probabilities of a prompt")
        length = len(prompt.ids)
        if [at(entry, "id") for entry in prefill[:length]] != list(prompt.ids) or len(prefill) <= length:
            raise EstimationError("one token spans the end of the prompt and the start of the answer")
        return tuple(number(at(entry, "logprob"), "prompt_log_probs") for entry in prefill[length:])


async def _ids(post: Post, text: str) -> tuple[int, ...]:
    found: Any = await asked(post, "/tokenize", {"inputs": text})
    return whole_numbers([at(entry, "id") for entry in found] if isinstance(found, list) else None)
