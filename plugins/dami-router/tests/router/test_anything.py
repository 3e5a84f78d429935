"""Whatever a client sends: never a 500, never a traceback, and the proxy lives on."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from fakes.loop import Loop
from fakes.upstream import Call, Upstream
from fakes.waiting import until
from fakes.world import Client, World
from hypothesis import given, settings
from hypothesis import strategies as st

PATHS = st.sampled_from(
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/generate",
        "/generate_stream",
        "/",
        "/v1/route",
        "/v1/models",
        "/info",
    ]
) | st.text(st.characters(codec="ascii", exclude_characters="\r\n ?#"), max_size=12).map("/".__add__)
METHODS = st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "DELETE", "HEAD", "OPTIONS"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("dami:0.5")
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "type"]), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["model", "messages", "prompt", "inputs", "stream", "reasoning_effort", "reasoning", "user", "parameters", "x"]
)
BODIES = st.dictionaries(KEYS, VALUES, max_size=5).map(lambda data: json.dumps(data).encode()) | st.binary(max_size=60)
HEADERS = st.dictionaries(
    st.sampled_from(["authorization", "content-type", "x-request-id", "traceparent", "accept", "expect-nothing"]),
    st.binary(max_size=12).map(lambda raw: raw.translate(None, bytes(range(32)) + b"\x7f")),
    max_size=3,
)


@pytest.fixture(scope="module")
def bugs() -> Iterator[list[logging.LogRecord]]:
    """Errors that the application logged while this module ran."""
    found: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = found.append  # type: ignore[method-assign]
    logging.getLogger("dami_router.proxy").addHandler(handler)
    yield found
    logging.getLogger("dami_router.proxy").removeHandler(handler)


@pytest.fixture(scope="module")
def anything(loop: Loop, bugs: list[logging.LogRecord]) -> Any:
    """A proxy over one server whose script a test may change, without pauses and without a breaker."""
    world = World(loop)
    server = world.upstream("v-l000")
    extra = "thinking: split\nbreaker: {failures: 100000}"
    yield world.router(("v-l000", server), extra=extra), server
    world.close()


@pytest.fixture(scope="module")
def client(loop: Loop, bugs: list[logging.LogRecord]) -> Any:
    """A proxy over one TGI and one other server, with all of a policy's state in use."""
    world = World(loop)
    servers = ("v-l000", world.tgi("v-l000")), ("v-l100", world.upstream("v-l100"))
    policy = "policy: {choose: dithered, sticky: true, budget: {mean_lambda: 0.5}}\nthinking: split"
    yield world.router(*servers, extra=policy)
    world.close()


def send(client: Client, raw: bytes) -> bytes:
    """Send bytes on a connection of their own; return the status line."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while b"\r\n" not in received and (piece := connection.recv(65536)):
            received += piece
    return received.split(b"\r\n", 1)[0]


@settings(max_examples=200)
@given(METHODS, PATHS, BODIES, HEADERS)
def test_no_request_is_answered_with_500(
    client: Client, method: str, path: str, body: bytes, headers: dict[str, bytes]
) -> None:
    """Any method, path, body and header is answered, and not by an internal error."""
    lines = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in headers.items())
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n".encode()
    raw = head + lines + b"\r\n" + body
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        connection.sendall(raw)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    status = received.split(b" ", 2)[1:2]
    assert status
    assert status[0] != b"500"
    assert b"Traceback" not in received


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_what_is_no_http_does_not_bring_it_down(client: Client, raw: bytes) -> None:
    """Noise on the socket is 400 or a closed connection; the next request is answered."""
    assert b" 500 " not in send(client, raw)
    assert client.get("/health").status == 200


TAGS = st.sampled_from([b"<think>", b"</think>", b"data: ", b"\n\n", b"[DONE]", b'{"choices": [', b'"usage": null'])
REPLIES = st.lists(TAGS | st.binary(max_size=30) | BODIES, max_size=4).map(b"".join)
TYPES = st.sampled_from(["application/json", "text/event-stream", "text/html", "", "x/\xff"])


@settings(max_examples=150)
@given(
    st.sampled_from([200, 200, 200, 201, 204, 302, 400, 404, 422, 429, 500, 503, 599]),
    TYPES, REPLIES, st.sampled_from(["exact", "chunked", "closed", "short", "long"]), st.booleans(),
)  # fmt: skip
def test_whatever_a_server_replies_is_no_bug_of_ours(
    anything: tuple[Client, Upstream], status: int, kind: str, body: bytes, framing: str, stream: bool
) -> None:
    """Any status, type, framing and body of a server is passed on or is a 429, 502 or 503; never a 500 of our own."""
    client, server = anything

    async def script(call: Call, writer: asyncio.StreamWriter) -> None:
        length = {"short": len(body) // 2, "long": len(body) + 9}.get(framing, len(body))
        how = "transfer-encoding: chunked" if framing == "chunked" else f"content-length: {length}"
        how = "connection: close" if framing == "closed" else how
        sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if framing == "chunked" and body else body
        sent = b"0\r\n\r\n" if framing == "chunked" and not body else sent
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n{how}\r\n\r\n"
        writer.write(head.encode("latin-1") + sent)
        await writer.drain()
        writer.close()

    server.script = script
    # What breaks off after its first event breaks off here too: there is no status to tell it by any more.
    with suppress(http.client.HTTPException):
        answer = client.chat(stream=stream)
        assert answer.status == status or answer.status in (429, 502, 503)
        assert answer.status != 500
        assert b"Traceback" not in answer.body


def test_nothing_unexpected_was_logged(client: Client, bugs: list[logging.LogRecord]) -> None:
    """After all that, the proxy's own handler of bugs has never run, and nobody is counted as inside."""
    assert client.chat("still there?").status == 200
    assert bugs == []
    until(lambda: client.app.admission.inside == 0)
