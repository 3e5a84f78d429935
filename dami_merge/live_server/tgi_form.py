"""Text Generation Inference's own routes: `/generate`, `/generate_stream` and `/`, and their replies.

As in TGI, a request without `parameters` is sampled, and `parameters` without a sampling setting mean greedy; the
prompt's log-probabilities are in `details.prefill`, for `decoder_input_details`, but not in a stream. Unlike in
TGI, a stop text is not part of the answer, and log-probabilities are the model's own, before temperature.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dami_merge.live import Choice, Completion, Engine, Event, Generation
from dami_merge.live.generation import MAX_TOP
from dami_merge.live_server.engine_request import EngineRequest, fitting, penalties, sampled, texts_of, tokens_of
from dami_merge.live_server.fields import NO_LIMIT, BadFieldError, Fields
from dami_merge.live_server.known_fields import TGI_BODY, TGI_PARAMETERS
from dami_merge.live_server.token_texts import Written, finite

__all__ = ["read_generate"]

_NEW_TOKENS = 100
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")


def read_generate(data: Mapping[str, Any], engine: Engine, lambda_: float, path: str) -> EngineRequest:
    """Read a request at λ; raises BadFieldError, MisuseError."""
    Fields(data).accept(TGI_BODY)
    text = Fields(data).text("inputs")
    given = data.get("parameters")
    fields = Fields.of(given if given is not None else {"do_sample": True}, "parameters")
    fields.accept(TGI_PARAMETERS)
    stream = path == "/generate_stream" or (path == "/" and Fields(data).flag("stream"))
    prefill = fields.flag("decoder_input_details")
    if stream and prefill:
        raise BadFieldError("`decoder_input_details` is not supported when streaming tokens")
    details = fields.flag("details") or prefill
    top = fields.whole("top_n_tokens", 0, 0, MAX_TOP)
    prompt = fitting(engine, _truncated(fields, tokens_of(engine, text, True)))
    generation = Generation(
        prompt,
        lambda_,
        max_new_tokens=fields.whole("max_new_tokens", _NEW_TOKENS, 1, NO_LIMIT),
        stop=fields.texts("stop"),
        log_probs=details or stream,
        top_log_probs=top if details or stream else 0,
        prompt_log_probs=0 if prefill else None,
        **_sampled(fields, engine, lambda_),
    )
    full = text if fields.flag("return_full_text") else ""
    form = _Form(Written(texts_of(engine).tokenizer), generation, texts_of(engine).eos, full, details, path == "/")
    return EngineRequest((generation,), stream, form)


def _truncated(fields: Fields, prompt: list[int]) -> list[int]:
    most = fields.whole("truncate", len(prompt), 1, NO_LIMIT) if fields.has("truncate") else len(prompt)
    return prompt[-most:]


def _sampled(fields: Fields, engine: Engine, lambda_: float) -> dict[str, Any]:
    if fields.flag("do_sample") or any(fields.has(name) for name in _SAMPLING):
        found = sampled(fields, texts_of(engine), lambda_)
        # A request to sample wins over a greedy generation_config.json.
        return found if fields.has("temperature") else {**found, "temperature": found["temperature"] or 1.0}
    return {"temperature": 0.0, "seed": fields.seed(), **penalties(fields, texts_of(engine), lambda_)}


@dataclass
class _Form:
    """Replies to one request."""

    written: Written
    generation: Generation
    eos: frozenset[int]
    full: str
    details: bool
    listed: bool
    _text: list[str] = field(default_factory=list)
    _count: int = 0

    def whole(self, answers: Sequence[Completion]) -> Any:
        (answer,) = answers
        reply: dict[str, Any] = {"generated_text": self.full + answer.text}
        if self.details:
            reply["details"] = self._details(answer)
        return [reply] if self.listed else reply

    def opening(self) -> bytes:
        return b""

    def event(self, index: int, event: Event) -> bytes:  # noqa: ARG002
        self._text.append(event.text)
        self._count += 1
        token = event.token or 0
        # Clients join the texts of all tokens that are not special, so a token's text is the text that it releases.
        special = self.written.special(token) and not event.text
        said = {**self._token(token, event.log_prob or 0.0, None if special else event.text), "special": special}
        end = None
        if event.finish_reason:
            reason = self._reason(event.finish_reason, token)
            end = {"finish_reason": reason, "generated_tokens": self._count, "seed": self.generation.seed,
                   "input_length": len(self.generation.prompt)}  # fmt: skip
        top = {"top_tokens": self._top(event.top)} if self.generation.top_log_probs else {}
        text = self.full + "".join(self._text) if end else None
        data = {"index": self._count, "token": said, **top, "generated_text": text, "details": end}
        return b"data:" + json.dumps(data, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"

    def closing(self) -> bytes:
        return b""

    def _details(self, answer: Completion) -> dict[str, Any]:
        rows = zip(answer.tokens, answer.log_probs, strict=True)
        tokens = [{**self._token(t, p), "special": self.written.special(t)} for t, p in rows]
        prefill = [self._token(p.token, p.log_prob) for p in answer.prompt_log_probs or ()]
        top = {"top_tokens": [self._top(top) for top in answer.top]} if self.generation.top_log_probs else {}
        reason = self._reason(answer.finish_reason, answer.tokens[-1])
        return {
            "finish_reason": reason, "generated_tokens": len(answer.tokens), "seed": self.generation.seed,
            "prefill": prefill, "tokens": tokens, **top,
        }  # fmt: skip

    def _reason(self, reason: str, last: int) -> str:
        if reason != "stop":
            return reason
        return "eos_token" if last in self.eos else "stop_sequence"

    def _token(self, token: int, value: float | None, text: str | None = None) -> dict[str, Any]:
        said = self.written.text([token]) if text is None else text
        return {"id": token, "text": said, "logprob": None if value is None else finite(value)}

    def _top(self, top: Sequence[Choice]) -> list[dict[str, Any]]:
        return [{**self._token(t, p), "special": self.written.special(t)} for t, p in top]
