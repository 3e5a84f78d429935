"""Failures on demand: answers that the real Hub gives on a bad day, and connections that break."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass
class Fault:
    """What goes wrong with the next requests whose `METHOD path` matches.

    `status` answers so; `cut` breaks the connection after that many bytes of the request's body
    (or of the answer's, with `answer`); `lost` does the work and then breaks the connection;
    `hang` waits that many seconds first. It happens `times` times, after letting `skip` requests pass.
    """

    match: str
    status: int | None = None
    cut: int | None = None
    answer: bool = False
    lost: bool = False
    hang: float = 0.0
    times: int = 1
    skip: int = 0
    message: str = "asked for by a test"

    def applies(self, request: str) -> bool:
        """Whether it is this request's turn."""
        if not re.search(self.match, request) or self.times == 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class Faults:
    """ASGI middleware: keeps a log of requests and lets planned ones fail."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.forget()

    def forget(self) -> None:
        """Plan nothing, and start a new log."""
        self.planned: list[Fault] = []
        self.log: list[str] = []
        self.headers: list[dict[str, str]] = []

    def plan(self, match: str, **how: Any) -> None:
        """Let the next matching requests fail."""
        self.planned.append(Fault(match, **how))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        app = self.app  # a request that hangs belongs to the state it was sent to
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        request = f"{scope['method']} {scope['path']}"
        self.log.append(request)
        self.headers.append({key.decode(): value.decode() for key, value in scope["headers"]})
        fault = next((f for f in self.planned if f.applies(request)), None)
        if fault is None:
            await app(scope, receive, send)
            return
        await asyncio.sleep(fault.hang)
        if fault.status is not None:
            await _answer(fault, send)
        elif fault.lost:
            await app(scope, receive, _swallow)
            _break(send)
        elif fault.answer:
            await app(scope, receive, _cutting(send, fault.cut or 0))
        elif fault.cut is not None:
            await _cut_request(receive, send, fault.cut)
        else:
            await app(scope, receive, send)


async def _answer(fault: Fault, send: Send) -> None:
    body = json.dumps({"error": fault.message}).encode()
    headers = [(b"content-type", b"application/json"), (b"x-error-message", fault.message.encode())]
    if fault.status == 429:
        headers.append((b"retry-after", b"0"))
    # The connection cannot be used again while the request's body was not read.
    headers += [(b"connection", b"close"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": fault.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _cut_request(receive: Receive, send: Send, after: int) -> None:
    seen = 0
    while seen < after:
        message = await receive()
        seen += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    _break(send)


def _cutting(send: Send, after: int) -> Send:
    left = after

    async def cut(message: Message) -> None:
        nonlocal left
        if message["type"] != "http.response.body":
            await send(message)
            return
        part = message["body"][:left]
        left -= len(part)
        await send({"type": "http.response.body", "body": part, "more_body": True})
        if not left:
            await asyncio.sleep(0.05)  # the part is on its way
            _break(send)

    return cut


async def _swallow(message: Message) -> None:
    return


def _break(send: Send) -> None:
    # uvicorn's `send` belongs to the cycle of one request, which knows the connection.
    send.__self__.transport.abort()  # type: ignore[attr-defined]
