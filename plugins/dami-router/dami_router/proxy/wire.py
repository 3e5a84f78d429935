"""ASGI helpers: read a body, send a reply, and write errors in the client's own format."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from dami_router.messages.request import Shape

__all__ = [
    "ClientGoneError", "Headers", "HttpError", "Message", "Receive", "Scope", "Send", "error_body", "error_event",
    "header", "send_json", "send_whole", "start",
]  # fmt: skip

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

_JSON = (b"content-type", b"application/json")
_OPENAI_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 404: "invalid_request_error",
    405: "invalid_request_error", 408: "invalid_request_error", 413: "invalid_request_error",
    415: "invalid_request_error", 429: "rate_limit_error",
}  # fmt: skip
_TGI_TYPES = {429: "overloaded"} | dict.fromkeys((400, 404, 408, 413, 415, 422), "validation")
_ANTHROPIC_TYPES = {
    401: "authentication_error", 404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error",
    503: "overloaded_error",
} | dict.fromkeys((400, 405, 408, 415), "invalid_request_error")  # fmt: skip


class ClientGoneError(Exception):
    """The client closed the connection."""


class HttpError(Exception):
    """An error reply from the proxy itself."""

    def __init__(self, status: int, message: str, *, code: str | None = None, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, tuple(headers)


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return a request header's first value."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def start(send: Send, status: int, headers: Headers) -> Awaitable[None]:
    """Send status and headers."""
    return send({"type": "http.response.start", "status": status, "headers": headers})


async def send_whole(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a whole reply."""
    await start(send, status, [*headers, (b"content-length", b"%d" % len(body))])
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, data: Any, headers: Headers = ()) -> None:
    """Send JSON."""
    body = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    await send_whole(send, status, [_JSON, *headers], body)


def error_body(shape: Shape, error: HttpError) -> Mapping[str, Any]:
    """Return an error body in OpenAI's, TGI's or Anthropic's format."""
    if shape == "tgi":
        return {"error": error.message, "error_type": _TGI_TYPES.get(error.status, "generation")}
    if shape == "anthropic":
        kind = _ANTHROPIC_TYPES.get(error.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    kind = _OPENAI_TYPES.get(error.status, "server_error")
    return {"error": {"message": error.message, "type": kind, "param": None, "code": error.code}}


def error_event(shape: Shape, message: str) -> bytes:
    """Return an error as an event of a stream."""
    body = error_body(shape, HttpError(502, message, code="upstream_broke_off"))
    name = b"event: error\n" if shape == "anthropic" else b""
    return name + b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"
