"""Turn a request into generations for the engine, and the form of the reply."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from dami_merge.live import Completion, Engine, Event, Generation
from dami_merge.live.generation import MAX_PENALTY
from dami_merge.live.tokenizing import Tokenizing
from dami_merge.live_server.fields import NO_LIMIT, BadFieldError, Fields, TooLongError

__all__ = [
    "MOST",
    "EngineRequest",
    "Form",
    "chat_tokens",
    "copies",
    "fitting",
    "prompts",
    "sampled",
    "texts_of",
    "tokens_of",
]

MAX_TEMPERATURE = 100.0
MAX_REPETITION = 100.0
_LEAST = 1e-9
MOST = 128
"""The most generations of one request: prompts times `n`."""
_OURS = ("add_generation_prompt", "chat_template", "continue_final_message", "conversation", "messages", "padding",
         "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs", "truncation")  # fmt: skip


class Form(Protocol):
    """Formats the replies to one request."""

    def whole(self, answers: Sequence[Completion]) -> Any:
        """Return the complete reply, for JSON."""
        ...

    def opening(self) -> bytes:
        """Return the beginning of a stream."""
        ...

    def event(self, index: int, event: Event) -> bytes:
        """Return the part of a stream for one event; empty if there is nothing to send yet."""
        ...

    def closing(self) -> bytes:
        """Return the end of a stream."""
        ...


@dataclass(frozen=True)
class EngineRequest:
    """A valid request."""

    generations: tuple[Generation, ...]
    stream: bool
    form: Form


def texts_of(engine: Engine) -> Tokenizing:
    """Return an engine's tokenizer and templates; a loaded engine has them."""
    assert engine.texts is not None
    return engine.texts


def sampled(fields: Fields, texts: Tokenizing, lambda_: float) -> dict[str, Any]:
    """Return a generation's sampling settings and penalties: the request's, and defaults for the others.

    The defaults come from the generation_config.json of the endpoint that λ belongs to, as for a built variant.
    """
    default = texts.sampling(lambda_)
    return {
        "temperature": fields.number("temperature", default.get("temperature", 0.0), 0.0, MAX_TEMPERATURE),
        # 0 keeps the likeliest token, and so does any tiny number above 0.
        "top_p": fields.number("top_p", default.get("top_p", 1.0), 0.0, 1.0) or _LEAST,
        "top_k": max(fields.whole("top_k", int(default.get("top_k", 0)), -1, NO_LIMIT), 0),
        "min_p": fields.number("min_p", default.get("min_p", 0.0), 0.0, 1.0),
        "typical_p": fields.number("typical_p", default.get("typical_p", 1.0), 0.0, 1.0) or _LEAST,
        "seed": fields.seed(),
        **penalties(fields, texts, lambda_),
    }


def penalties(fields: Fields, texts: Tokenizing, lambda_: float) -> dict[str, float]:
    """Return a generation's penalties, which apply to greedy answers too."""
    default = texts.sampling(lambda_)
    repetition = fields.number("repetition_penalty", default.get("repetition_penalty", 1.0), 0.0, MAX_REPETITION)
    if not repetition:
        raise BadFieldError("`repetition_penalty` must be above 0")
    found = {"repetition_penalty": repetition}
    for name in ("presence_penalty", "frequency_penalty"):
        found[name] = fields.number(name, default.get(name, 0.0), -MAX_PENALTY, MAX_PENALTY)
    return found


def fitting(engine: Engine, prompt: Sequence[int]) -> Sequence[int]:
    """Return the prompt; raises TooLongError if it leaves no room for an answer."""
    if not prompt:
        raise BadFieldError("the prompt is empty")
    if len(prompt) >= engine.max_length:
        raise TooLongError(
            f"the prompt has {len(prompt)} tokens; this server takes {engine.max_length} together with the answer"
        )
    return prompt


def copies(generations: Sequence[Generation], n: int) -> tuple[Generation, ...]:
    """Return each generation `n` times; if there is a seed, each copy gets a different one."""
    if len(generations) * n > MOST:
        raise BadFieldError(f"at most {MOST} answers per request, found {len(generations) * n}")
    seeded = [(g, None if g.seed is None else g.seed + i) for g in generations for i in range(n)]
    return tuple(replace(g, seed=seed) for g, seed in seeded)


def chat_tokens(engine: Engine, fields: Fields, lambda_: float) -> list[int]:
    """Return a conversation's tokens from the pair's chat template; raises MisuseError if it rejects them."""
    going_on = fields.flag("continue_final_message")
    arguments = _template_arguments(fields)
    begin = fields.flag("add_generation_prompt", not going_on)
    return texts_of(engine).encode_chat(
        _messages(fields), lambda_, add_generation_prompt=begin, continue_final_message=going_on, **arguments
    )


def _template_arguments(fields: Fields) -> dict[str, Any]:
    value = fields.data.get("chat_template_kwargs")
    if value is None:
        return {}
    given = Fields.of(value, "chat_template_kwargs").data
    for name in given:
        if name in _OURS or not name.isidentifier():
            raise BadFieldError("`chat_template_kwargs` holds a name that is not a template variable")
    return dict(given)


def _messages(fields: Fields) -> list[dict[str, Any]]:
    messages = fields.data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadFieldError("`messages` must be a list with at least one message")
    return [_message(message) for message in messages]


def _message(message: object) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadFieldError("each message must be an object with a `role`")
    made = {**message, "content": _content(message.get("content"))}
    if made.get("tool_calls") is not None:
        made["tool_calls"] = _tool_calls(made["tool_calls"])
    return made


def _tool_calls(calls: object) -> list[dict[str, Any]]:
    """Return a message's tool calls with their arguments as objects: clients send text, templates expect objects."""
    if not isinstance(calls, list):
        raise BadFieldError("`tool_calls` of a message must be a list")
    return [_tool_call(call) for call in calls]


def _tool_call(call: object) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise BadFieldError("each of a message's `tool_calls` must be an object with a `function`")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            arguments = None
    elif arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise BadFieldError("`arguments` of a tool call must be a JSON object, or the text of one")
    return {**call, "function": {**function, "arguments": arguments}}


def _content(content: object) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise BadFieldError("`content` of a message must be a text or a list of parts")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise BadFieldError("only parts of type `text` are supported in `content`")
    return "\n".join(part["text"] for part in content)


def prompts(engine: Engine, fields: Fields, field: str = "prompt", otherwise: str = "") -> list[list[int]]:
    """Return the prompts in a field: a text, token ids, or a list of either; `otherwise` is said if there is none."""
    value = fields.data.get(field)
    special = fields.flag("add_special_tokens", True)
    if isinstance(value, str) or _ids(value):
        value = [value]
    if not isinstance(value, list) or not value:
        raise BadFieldError(f"`{field}` must be a text, a list of token ids, or a list of these{otherwise}")
    if len(value) > MOST:
        raise BadFieldError(f"at most {MOST} {field}s per request, found {len(value)}")
    return [tokens_of(engine, prompt, special) for prompt in value]


def tokens_of(engine: Engine, prompt: object, special: bool) -> list[int]:
    """Return one prompt's tokens."""
    if isinstance(prompt, str):
        return texts_of(engine).encode(prompt, special=special)
    if _ids(prompt):
        assert isinstance(prompt, list)
        return prompt
    raise BadFieldError("a prompt must be a text or a list of token ids")


def _ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(id) is int for id in value)
