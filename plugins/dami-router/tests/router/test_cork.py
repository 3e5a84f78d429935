"""What leaves the proxy in one piece, and what may not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from fakes.loop import Loop
from fakes.waiting import happened

from dami_router.config.router_schema import Limits
from dami_router.proxy.server import settings

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"
Work = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    """Return a message of ASGI."""
    return {"type": "http.response.body", "body": data, "more_body": more}


def served(loop: Loop, reply: Callable[[Any, Any], Any], work: Work) -> None:
    """Serve an application as the proxy is served, and talk to it over one connection."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await reply(receive, send)
            return
        for _ in range(2):
            await send({"type": (await receive())["type"] + ".complete"})

    async def run() -> None:
        server = uvicorn.Server(settings(app, "127.0.0.1", 0, Limits(drain=1.0)))  # type: ignore[arg-type]
        task = asyncio.create_task(server.serve())
        await happened(lambda: server.started, pause=0.005)
        reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname()[:2])
        try:
            async with asyncio.timeout(60):
                await work(reader, writer)
        finally:
            writer.close()
            server.should_exit = True
            await task

    loop.run(run())


@pytest.mark.parametrize(
    ("messages", "pieces"),
    [
        ([START, body(b"ok")], [HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"]),
        (
            [START, body(b"a", more=True), body(b"HTTP/1.1 b", more=True), body(b"")],
            [HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n", b"a\r\nHTTP/1.1 b\r\n", b"0\r\n\r\n"],
        ),
    ],
    ids=["whole", "stream"],
)
def test_the_first_piece_travels_with_the_headers(
    loop: Loop, messages: list[dict[str, Any]], pieces: list[bytes]
) -> None:
    """A whole reply is one write; of a stream the first piece is, and no later one waits for another."""

    arrived = asyncio.Semaphore(0)

    async def reply(_: Any, send: Any) -> None:
        for message in messages:
            await send(message)
            if message is not START:
                await arrived.acquire()

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        for piece in pieces:
            assert await reader.read(1 << 16) == piece
            arrived.release()

    served(loop, reply, work)


def test_headers_without_a_body_are_not_kept(loop: Loop) -> None:
    """A reply to HEAD, a reply cut off behind its headers: what there is of them arrives."""

    async def reply(_: Any, send: Any) -> None:
        await send({**START, "headers": [(b"content-length", b"2")]})
        await send(body(b"ok"))

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            writer.write(b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert await reader.read(1 << 16) == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"

    served(loop, reply, work)

    async def half(_: Any, send: Any) -> None:
        await send({**START, "headers": [(b"content-length", b"2")]})

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert await reader.read() == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"

    served(loop, half, cut)


def test_an_interim_reply_does_not_wait(loop: Loop) -> None:
    """Who waits for `100 Continue` before sending a body gets it; nonsense gets its 400 and an end."""

    async def reply(receive: Any, send: Any) -> None:
        found = (await receive())["body"]
        await send(START)
        await send(body(found))

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert await reader.read(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ok")
        assert await reader.read(1 << 16) == HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
        writer.write(b"nonsense\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")

    served(loop, reply, work)


def test_pipelined_requests_are_answered_in_order(loop: Loop) -> None:
    """Each reply is whole before the next one begins."""
    count = 0

    async def reply(_: Any, send: Any) -> None:
        nonlocal count
        count += 1
        text = b"%d" % count
        await send({**START, "headers": [(b"content-length", b"1")]})
        await asyncio.sleep(0.01)
        await send(body(text))

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 3)
        wanted = b"".join(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n%d" % i for i in (1, 2, 3))
        assert await reader.readexactly(len(wanted)) == wanted

    served(loop, reply, work)
