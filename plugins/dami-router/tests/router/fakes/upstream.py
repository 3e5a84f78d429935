"""A scripted HTTP/1.1 server on raw sockets: it can hang, drip, cut, lie and vanish.

`script` answers a POST; it gets the parsed call and the writer, and may do anything with them.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fakes.waiting import happened

_TURNS = 3  # of the loop, from an accepted connection to its `_connection`
Script = Callable[["Call", asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Call:
    """One request as it came, and whether its client left before the reply's end."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Upstream:
    """A server at a port of its own. `calls` are its POSTs; `active` of them are under way."""

    def __init__(
        self, script: Script | None = None, *, models: Any = None, keep_alive: bool = True, host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self.host, self.tls = host, tls
        self.script = script or plain()
        self.models = models
        self.keep_alive = keep_alive
        self.calls: list[Call] = []
        self.active = 0
        self.cancelled = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._writers)

    async def start(self) -> None:
        """Listen; at the same port as before, after a `stop`."""
        self._server = await asyncio.start_server(self._connection, self.host, self.port, backlog=1024, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections, and cut those there are."""
        if self._server is not None:
            # asyncio's server loses a connection that it accepted just before it closes: it is left open, and
            # nobody told. So take no more, let the last become connections, and close then.
            loop = asyncio.get_running_loop()
            for sock in self._server.sockets:
                loop.remove_reader(sock.fileno())
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def drop_connections(self) -> None:
        """Close all connections as a server does whose keep-alive ran out."""
        for writer in list(self._writers):
            writer.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while (call := await _read(reader)) is not None:
                await self._answer(call, reader, writer)
                if not self.keep_alive or writer.is_closing():
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if call.method == "GET":
            await self.get(call, writer)
            return
        self.calls.append(call)
        self.active += 1
        watch = asyncio.create_task(_until_closed(reader))
        work = asyncio.ensure_future(self.script(call, writer))
        try:
            await asyncio.wait([watch, work], return_when=asyncio.FIRST_COMPLETED)
            if watch.done() and not work.done():
                self.cancelled += 1
                call.gone.set()
                raise ConnectionResetError
            await work
        finally:
            self.active -= 1
            for task in (watch, work):
                task.cancel()
                with suppress(BaseException):
                    await task

    async def get(self, call: Call, writer: asyncio.StreamWriter) -> None:
        """Answer a probe."""
        if call.path == "/v1/models":
            await send(writer, 200, self.models)
        elif call.path == "/health":
            await send(writer, 200, {})
        else:
            await send(writer, 404, {"detail": "Not Found"})


async def _until_closed(reader: asyncio.StreamReader) -> None:
    # The proxy sends nothing while it waits for a reply; only the end of the connection can come.
    while not reader.at_eof():
        await asyncio.sleep(0.02)


async def _read(reader: asyncio.StreamReader) -> Call | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    return Call(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


async def send(writer: asyncio.StreamWriter, status: int, data: Any, **headers: str) -> None:
    """Send a whole reply; `data` is bytes, or is sent as JSON."""
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    fields = {"content_type": "application/json", "content_length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body)
    await writer.drain()


def chat(text: str = "4", **extra: Any) -> dict[str, Any]:
    """Return a chat completion."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
        **extra,
    }


def chunk(text: str, finish: str | None = None) -> bytes:
    """Return one event of a streamed chat."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    data = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def plain(status: int = 200, data: Any = None, **headers: str) -> Script:
    """Answer the same whole reply every time: a chat completion unless told otherwise."""

    async def script(call: Call, writer: asyncio.StreamWriter) -> None:
        if call.method == "POST" and status == 200 and data is None and call.json.get("stream"):
            await stream(chunk("4"), chunk("", "stop"), b"data: [DONE]\n\n")(call, writer)
        else:
            await send(writer, status, chat() if data is None else data, **headers)

    return script


def stream(
    *pieces: bytes, delay: float = 0.0, cut: bool = False, hang: bool = False, gate: threading.Event | None = None
) -> Script:
    """Stream pieces as they are, all but the first behind the gate; then end well, be cut, or hang."""

    async def script(call: Call, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in pieces:
            writer.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            await writer.drain()
            await asyncio.sleep(delay)
            if gate is not None:
                await happened(gate.is_set)
        if hang:
            await asyncio.sleep(3600)
        if cut:
            writer.close()
            return
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    return script


def hang() -> Script:
    """Take the request and say nothing."""

    async def script(call: Call, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)

    return script


def vanish() -> Script:
    """Take the request and close the connection."""

    async def script(call: Call, writer: asyncio.StreamWriter) -> None:
        writer.close()

    return script


def half(promised: int | None = 1000) -> Script:
    """Promise a body of some length, or one until the connection's end, and close in its middle."""

    async def script(call: Call, writer: asyncio.StreamWriter) -> None:
        length = "" if promised is None else f"content-length: {promised}\r\n"
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{length}\r\n"
        writer.write(head.encode() + b'{"id": "c1", "choi')
        await writer.drain()
        writer.close()

    return script


def noise() -> Script:
    """Answer something that is not HTTP."""

    async def script(call: Call, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp.example ESMTP\r\n\r\n")
        await writer.drain()
        writer.close()

    return script
