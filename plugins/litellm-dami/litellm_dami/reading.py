"""Conversion of LiteLLM's requests to the router's form: roles, texts and hints only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dami_router.messages.request import BadRequestError, Request, read_request

__all__ = ["request_of"]

_HINTS = ("reasoning_effort", "reasoning", "user", "stream")


def request_of(data: Mapping[str, Any], model: str) -> Request:
    """Convert LiteLLM's chat, completion, responses or messages request for the router, under another model's name.

    Pictures, tools and LiteLLM's own objects are skipped: the router reads only text.
    """
    body: dict[str, Any] = {"model": model} | {name: data[name] for name in _HINTS if name in data}
    asked = data.get("messages") or data.get("input")
    if isinstance(asked, list):
        body["messages"] = [_lean(message) for message in asked if isinstance(message, Mapping)]
    else:
        body["prompt"] = data.get("prompt") if asked is None else asked
    try:
        return _read(body)
    except BadRequestError:
        # An unknown effort: the server may refuse it, the hook does not.
        return _read({name: value for name, value in body.items() if name not in _HINTS})


def _read(body: Mapping[str, Any]) -> Request:
    return read_request("/v1/chat/completions", "openai", json.dumps(body, default=str).encode())


def _lean(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        content = [{"type": "text", "text": text} for text in texts if isinstance(text, str)]
    return {"role": message.get("role"), "content": content}
