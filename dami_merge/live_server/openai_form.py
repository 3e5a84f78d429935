"""OpenAI's chat and text completions: requests read, replies written, whole and streamed.

Beyond OpenAI's own fields, those of vLLM for prompts and sampling: `prompt_logprobs`, prompts as token ids, `echo`
with `max_tokens: 0`, `top_k`, `min_p`, `repetition_penalty`, `ignore_eos`, `chat_template_kwargs`. Fields that this
server does not know are refused by name (`known_fields`).
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dami_merge.live import Completion, Engine, Event, Generation, PromptToken
from dami_merge.live.generation import MAX_TOP
from dami_merge.live_server.engine_request import (
    MOST,
    EngineRequest,
    chat_tokens,
    copies,
    fitting,
    prompts,
    sampled,
    texts_of,
)
from dami_merge.live_server.fields import NO_LIMIT, BadFieldError, Fields
from dami_merge.live_server.known_fields import CHAT, COMPLETION, STREAM_OPTIONS
from dami_merge.live_server.token_texts import Written
from dami_router.messages.pinning import pin

__all__ = ["read_chat", "read_completion"]

_TEXT_TOKENS = 16
"""OpenAI's limit for text completions whose request sets none."""


def read_chat(data: Mapping[str, Any], engine: Engine, lambda_: float) -> EngineRequest:
    """Read a chat request at λ; raises BadFieldError, MisuseError."""
    fields = Fields(data)
    fields.accept(CHAT)
    prompt = fitting(engine, chat_tokens(engine, fields, lambda_))
    top = fields.whole("top_logprobs", 0, 0, MAX_TOP)
    if top and not fields.flag("logprobs"):
        raise BadFieldError("`top_logprobs` needs `logprobs: true`")
    # As in vLLM: the limit in generation_config.json, or whatever fits.
    most = int(texts_of(engine).sampling(lambda_).get("max_new_tokens") or engine.max_length)
    limit = _limit(fields, ("max_completion_tokens", "max_tokens"), max(most, 1))
    one = _generation(fields, engine, lambda_, prompt, limit, fields.flag("logprobs"), top)
    return _asked("chat", fields, engine, lambda_, [one])


def read_completion(data: Mapping[str, Any], engine: Engine, lambda_: float) -> EngineRequest:
    """Read a request for text completions at λ; raises BadFieldError, MisuseError."""
    fields = Fields(data)
    fields.accept(COMPLETION)
    logs = fields.has("logprobs")
    top = fields.whole("logprobs", 0, 0, MAX_TOP)
    limit = _limit(fields, ("max_tokens",), _TEXT_TOKENS, low=0 if fields.flag("echo") else 1)
    many = [
        _generation(fields, engine, lambda_, fitting(engine, prompt), limit, logs, top)
        for prompt in prompts(engine, fields)
    ]
    return _asked("text", fields, engine, lambda_, many, nothing_new=limit == 0)


def _limit(fields: Fields, names: Sequence[str], default: int, *, low: int = 1) -> int:
    name = next((name for name in names if fields.has(name)), names[0])
    return fields.whole(name, default, low, NO_LIMIT)


def _thoughts(fields: Fields) -> int | None:
    """Return the limit of thinking tokens; -1 means none, as in vLLM."""
    most = fields.whole("thinking_token_budget", -1, -1, NO_LIMIT)
    return None if most < 0 else most


def _generation(
    fields: Fields, engine: Engine, lambda_: float, prompt: Sequence[int], limit: int, logs: bool, top: int
) -> Generation:
    scored = fields.whole("prompt_logprobs", 0, 0, MAX_TOP) if fields.has("prompt_logprobs") else None
    if fields.flag("echo") and logs:
        scored = max(top, scored or 0)
    return Generation(
        prompt,
        lambda_,
        max_new_tokens=max(limit, 1),
        stop=fields.texts("stop"),
        ignore_eos=fields.flag("ignore_eos"),
        skip_special_tokens=fields.flag("skip_special_tokens", True),
        thinking_token_budget=_thoughts(fields),
        log_probs=logs,
        top_log_probs=top,
        prompt_log_probs=scored,
        **sampled(fields, texts_of(engine), lambda_),
    )


def _asked(
    kind: Literal["chat", "text"], fields: Fields, engine: Engine, lambda_: float, many: Sequence[Generation],
    *, nothing_new: bool = False,
) -> EngineRequest:  # fmt: skip
    stream = fields.flag("stream")
    if stream and (fields.flag("echo") or fields.has("prompt_logprobs")):
        raise BadFieldError("`echo` and `prompt_logprobs` are not available in a stream; leave `stream` out")
    n = fields.whole("n", 1, 1, MOST)
    generations = copies(many, n)
    options = Fields.of(
        {} if fields.data.get("stream_options") is None else fields.data["stream_options"], "stream_options"
    )
    options.accept(STREAM_OPTIONS)
    form = _Form(
        kind, pin(lambda_), Written(texts_of(engine).tokenizer), generations, sum(len(g.prompt) for g in many),
        echo=fields.flag("echo"), prompt_logprobs=fields.has("prompt_logprobs"), nothing_new=nothing_new,
        include_usage=options.flag("include_usage"),
    )  # fmt: skip
    return EngineRequest(generations, stream, form)


@dataclass
class _Form:
    """Replies to one request."""

    kind: Literal["chat", "text"]
    model: str
    written: Written
    generations: Sequence[Generation]
    prompt_tokens: int
    echo: bool = False
    prompt_logprobs: bool = False
    nothing_new: bool = False
    include_usage: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    _count: int = 0
    _offsets: dict[int, int] = field(default_factory=dict)

    def whole(self, answers: Sequence[Completion]) -> Any:
        choices = [self._choice(i, answer) for i, answer in enumerate(answers)]
        count = 0 if self.nothing_new else sum(len(answer.tokens) for answer in answers)
        reply = {**self._head(chunk=False), "choices": choices, "usage": self._usage(count)}
        if self.kind == "chat" and self.prompt_logprobs:
            reply["prompt_logprobs"] = self._prompt_entries(answers[0].prompt_log_probs or ())
        return reply

    def opening(self) -> bytes:
        if self.kind == "text":
            return b""
        beginning = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(i, delta=beginning) for i in range(len(self.generations)))

    def event(self, index: int, event: Event) -> bytes:
        self._count += event.token is not None
        scored = self.generations[index].log_probs and event.token is not None
        if not event.text and not scored and event.finish_reason is None:
            return b""
        logprobs = self._logprobs([event.token or 0], [event.log_prob or 0.0], [event.top], index) if scored else None
        if self.kind == "chat":
            delta = {"content": event.text}
            return self._chunk(index, delta=delta, logprobs=logprobs, finish_reason=event.finish_reason)
        return self._chunk(index, text=event.text, logprobs=logprobs, finish_reason=event.finish_reason)

    def closing(self) -> bytes:
        end = b"data: [DONE]\n\n"
        if not self.include_usage:
            return end
        return _sse({**self._head(chunk=True), "choices": [], "usage": self._usage(self._count)}) + end

    def _head(self, *, chunk: bool) -> dict[str, Any]:
        name = ("chat.completion.chunk" if chunk else "chat.completion") if self.kind == "chat" else "text_completion"
        prefix = "chatcmpl" if self.kind == "chat" else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": name, "created": self.created, "model": self.model}

    def _chunk(self, index: int, **said: Any) -> bytes:
        choice = {"index": index, "logprobs": None, "finish_reason": None, **said}
        usage: dict[str, Any] = {"usage": None} if self.include_usage else {}
        return _sse({**self._head(chunk=True), "choices": [choice], **usage})

    def _usage(self, count: int) -> dict[str, int]:
        total = self.prompt_tokens + count
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": count, "total_tokens": total}

    def _choice(self, index: int, answer: Completion) -> dict[str, Any]:
        if self.kind == "chat":
            message = {"role": "assistant", "content": answer.text}
            scored = self.generations[index].log_probs
            logprobs = self._logprobs(answer.tokens, answer.log_probs, answer.top, index) if scored else None
            return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": answer.finish_reason}
        choice = self._text_choice(index, answer)
        if self.prompt_logprobs:
            choice["prompt_logprobs"] = self._prompt_entries(answer.prompt_log_probs or ())
        return choice

    def _text_choice(self, index: int, answer: Completion) -> dict[str, Any]:
        generation = self.generations[index]
        tokens, values, tops = [*answer.tokens], [*answer.log_probs], [*answer.top]
        text, reason = answer.text, str(answer.finish_reason)
        if self.nothing_new:
            tokens, values, tops, text, reason = [], [], [], "", "length"
        scored: list[float | None] = [*values]
        if self.echo:
            text = self.written.text(generation.prompt) + text
            before = answer.prompt_log_probs or ()
            tokens = [*(p.token for p in before), *tokens]
            scored = [*(p.log_prob for p in before), *scored]
            tops = [*(p.top for p in before), *tops]
        logprobs = self._logprobs(tokens, scored, tops, index) if generation.log_probs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(
        self, tokens: Sequence[int], values: Sequence[float | None], tops: Sequence[Any], index: int
    ) -> dict[str, Any]:
        # The engine lists alternatives only if they were requested.
        tops = tops if len(tops) == len(tokens) else [()] * len(tokens)
        if self.kind == "chat":
            return self.written.chat_logprobs(tokens, [v or 0.0 for v in values], tops)
        found = self.written.text_logprobs(tokens, values, tops, self._offsets.get(index, 0))
        self._offsets[index] = self._offsets.get(index, 0) + sum(map(len, found["tokens"]))
        return found

    def _prompt_entries(self, prompt: Sequence[PromptToken]) -> list[Any]:
        return [self.written.prompt_entry(p.token, p.log_prob, p.top) for p in prompt]


def _sse(data: Any) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"
