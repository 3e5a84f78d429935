"""Connections to servers: kept, tried, given up; what a server does with one, and what comes of it."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.loop import Loop
from fakes.waiting import happened

from dami_router.upstream.pool import Origin, Pool
from dami_router.upstream.reply import CallError


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    """Both event loops: `dami serve` runs on uvloop, everything else on asyncio's own."""
    made = Loop(pytest.importorskip(request.param).new_event_loop)
    yield made
    made.stop()


HEAD = b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n"
REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A server that answers each request by `script`; counts its connections."""

    def __init__(self, script: Handler, tls: ssl.SSLContext | None = None) -> None:
        self._script, self._tls = script, tls
        self.connections = self.ended = 0

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0, ssl=self._tls)
        self.origin = Origin("127.0.0.1", self._server.sockets[0].getsockname()[1], self._tls is not None)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(2)
                await self._script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.ended += 1
            writer.close()


def says(data: bytes, *, close: bool = False) -> Handler:
    """Answer always the same."""

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if close:
            writer.close()

    return script


async def ask(pool: Pool, origin: Origin, within: float = 60.0, **options: Any) -> bytes:
    """Ask, and read the reply to its end."""
    until = asyncio.get_running_loop().time() + within
    call = await pool.call(origin, HEAD, b"{}", until, **options)
    try:
        pieces = []
        while piece := await call.read():
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        call.close()


async def why(awaitable: Awaitable[object]) -> str:
    """Return why a call failed."""
    with pytest.raises(CallError) as error:
        await awaitable
    return error.value.why


def with_server(
    loop: Loop, script: Handler, work: Callable[[Pool, Server], Awaitable[None]], keepalive: float = 60.0
) -> None:
    """Run a test between a server and a pool; the pool leaves no connection behind."""

    async def run() -> None:
        async with Server(script) as server:
            pool = Pool(20.0, keepalive)
            try:
                await work(pool, server)
            finally:
                pool.close()
            await happened(lambda: server.ended == server.connections)

    loop.run(run())


def test_a_connection_serves_one_request_after_another(loop: Loop) -> None:
    """A hundred requests in a row need one connection, as many at once one each."""

    async def work(pool: Pool, server: Server) -> None:
        for _ in range(100):
            assert await ask(pool, server.origin) == b"ok"
        assert server.connections == 1
        assert await asyncio.gather(*(ask(pool, server.origin) for _ in range(10))) == [b"ok"] * 10
        assert server.connections == 10

    with_server(loop, says(REPLY), work)


@pytest.mark.parametrize(
    "data",
    [
        REPLY.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"),
        REPLY.replace(b"1.1", b"1.0"),
        REPLY + b"garbage",
        REPLY + REPLY,
    ],
    ids=["connection: close", "HTTP/1.0", "garbage behind the reply", "a second reply"],
)
def test_a_connection_that_cannot_be_used_again_is_not(loop: Loop, data: bytes) -> None:
    """The reply is good; the next request goes to a connection of its own."""

    async def work(pool: Pool, server: Server) -> None:
        assert [await ask(pool, server.origin) for _ in range(3)] == [b"ok"] * 3
        assert server.connections == 3

    with_server(loop, says(data), work)


def test_what_comes_on_an_idle_connection_is_no_reply(loop: Loop) -> None:
    """A server that speaks unasked loses the connection: its words are not the next request's reply."""

    taken = asyncio.Semaphore(0)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REPLY)
        await taken.acquire()
        writer.write(REPLY.replace(b"ok", b"no"))

    async def work(pool: Pool, server: Server) -> None:
        for i in range(3):
            assert await ask(pool, server.origin) == b"ok"
            taken.release()
            await happened(lambda i=i: server.ended == i + 1)  # type: ignore[misc]
        assert server.connections == 3

    with_server(loop, script, work)


def test_idle_connections_are_closed_after_a_while(loop: Loop) -> None:
    """Nothing is kept longer than servers keep it, even where nobody asks any more."""

    async def work(pool: Pool, server: Server) -> None:
        await asyncio.gather(*(ask(pool, server.origin) for _ in range(5)))
        await happened(lambda: server.ended == 5)
        assert await ask(pool, server.origin) == b"ok"
        assert server.connections == 6

    with_server(loop, says(REPLY), work, keepalive=0.1)


def test_a_fresh_connection_is_used_where_one_is_wanted(loop: Loop) -> None:
    """Idle ones are left alone then."""

    async def work(pool: Pool, server: Server) -> None:
        await ask(pool, server.origin)
        await ask(pool, server.origin, fresh=True)
        assert server.connections == 2

    with_server(loop, says(REPLY), work)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "disconnected"),
        (b"HTTP/1.1 200", "broke_off"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", "broke_off"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n", "broke_off"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "not_http"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 300_000, "not_http"),
    ],
)
def test_a_server_that_ends_early_or_talks_nonsense_gives_a_reason(loop: Loop, data: bytes, reason: str) -> None:
    """One word says what happened, and the connection is gone."""

    async def work(pool: Pool, server: Server) -> None:
        assert await why(ask(pool, server.origin)) == reason
        await happened(lambda: server.ended == 1)

    with_server(loop, says(data, close=True), work)


def test_a_reply_without_a_length_ends_with_its_connection(loop: Loop) -> None:
    """As servers of HTTP/1.0 send it."""

    async def work(pool: Pool, server: Server) -> None:
        assert [await ask(pool, server.origin) for _ in range(2)] == [b"all of it"] * 2

    with_server(loop, says(b"HTTP/1.0 200 OK\r\n\r\nall of it", close=True), work)


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\n", REPLY[:-1]], ids=["nothing", "headers", "body"])
def test_silence_ends_with_the_time_limit(loop: Loop, data: bytes) -> None:
    """Before the reply, in its headers, in its body: one limit for all, and the server sees the connection close."""

    async def work(pool: Pool, server: Server) -> None:
        began = asyncio.get_running_loop().time()
        assert await why(ask(pool, server.origin, 0.1)) == "timeout"
        assert 0.09 < asyncio.get_running_loop().time() - began < 30
        await happened(lambda: server.ended == 1)

    with_server(loop, says(data), work)


def test_a_limit_holds_for_its_own_request(loop: Loop) -> None:
    """On one connection a long limit follows a short one, and a short one a long one: each is kept."""

    delays = iter((0.0, 2.2, 0.0, 2.0))

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(next(delays))
        writer.write(REPLY)

    async def work(pool: Pool, server: Server) -> None:
        assert await ask(pool, server.origin, 2) == b"ok"
        assert await ask(pool, server.origin, 60) == b"ok"
        assert await ask(pool, server.origin, 2) == b"ok"
        assert await why(ask(pool, server.origin, 0.1)) == "timeout"
        assert server.connections == 1

    with_server(loop, script, work)


def test_a_slow_reader_is_not_taken_for_a_slow_server(loop: Loop) -> None:
    """A limit that passes while nobody waits for the server is nobody's failure."""

    async def work(pool: Pool, server: Server) -> None:
        now = asyncio.get_running_loop().time
        limit = now() + 1
        call = await pool.call(server.origin, HEAD, b"{}", limit)
        await happened(lambda: now() > limit)
        assert await call.read(now() + 60) == b"ok"
        call.close()

    with_server(loop, says(REPLY), work)


def test_a_server_is_held_back_while_nobody_reads(loop: Loop) -> None:
    """A body that nobody takes stays where it is; once it is taken, it comes to its end."""
    sent = 0
    size = 32 << 20

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(size >> 16):
            writer.write(b"x" * (1 << 16))
            await writer.drain()
            sent += 1 << 16

    async def work(pool: Pool, server: Server) -> None:
        call = await pool.call(server.origin, HEAD, b"{}", asyncio.get_running_loop().time() + 60)
        await asyncio.sleep(0.3)
        assert sent < size // 2
        taken = 0
        while piece := await call.read():
            taken += len(piece)
        call.close()
        assert taken == size
        assert await ask(pool, server.origin) == b"x" * size
        assert server.connections == 1

    with_server(loop, script, work)


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_call_that_is_given_up_closes_its_connection(loop: Loop, cancelled: bool) -> None:
    """Cancelled before the reply, or closed in its middle: the server sees it."""

    async def work(pool: Pool, server: Server) -> None:
        now = asyncio.get_running_loop().time()
        if cancelled:
            task = asyncio.create_task(ask(pool, server.origin))
            await happened(lambda: server.connections == 1)
            task.cancel()
            await asyncio.wait([task])
        else:
            (await pool.call(server.origin, HEAD, b"{}", now + 60)).close()
        await happened(lambda: server.ended == 1)

    with_server(loop, says(b"" if cancelled else REPLY[:-1]), work)


def test_an_answer_to_half_a_request_is_taken(loop: Loop) -> None:
    """A server may refuse a large body before it has read it; its reply counts, its connection is not used again."""

    left = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(REPLY.replace(b"200", b"413"))
        await writer.drain()
        await left.wait()
        # What was never read stands in the way of a polite end.
        writer.transport.abort()

    async def run() -> None:
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        origin = Origin("127.0.0.1", server.sockets[0].getsockname()[1], False)
        pool = Pool(20.0, 60.0)
        until = asyncio.get_running_loop().time() + 60
        call = await pool.call(origin, HEAD.replace(b"2\r", b"33554432\r"), b"x" * (32 << 20), until)
        assert (call.status, await call.read()) == (413, b"ok")
        call.close()
        assert pool.take(origin) is None
        pool.close()
        left.set()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0)

    loop.run(run())


def test_a_refused_connection_and_one_that_never_comes(loop: Loop) -> None:
    """Nobody listens, or nobody has the name: both are told apart, in time."""

    async def run() -> None:
        async with Server(says(REPLY)) as server:
            pass
        pool = Pool(20.0, 5.0)
        assert await why(ask(pool, server.origin)) == "refused"
        pool.close()
        pool = Pool(0.1, 5.0)
        # A name that no resolver knows (RFC 6761).
        assert await why(ask(pool, Origin("nobody.invalid", 80, False))) in ("unresolved", "connect_timeout")
        pool.close()

    loop.run(run())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    key, found = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(found)]
    try:
        subprocess.run([*command, *names], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not here to make a certificate")
    return key, found


@pytest.mark.parametrize("trusted", [True, False])
def test_tls_is_checked(
    loop: Loop, certificate: tuple[Path, Path], trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose certificate is trusted is asked, again on the same connection; any other is refused."""
    key, found = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(found, key)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(found))

    async def run() -> None:
        async with Server(says(REPLY), context) as server:
            pool = Pool(20.0, 60.0)
            if trusted:
                assert [await ask(pool, server.origin) for _ in range(2)] == [b"ok"] * 2
                assert server.connections == 1
            else:
                assert await why(ask(pool, server.origin)) == "untrusted"
            pool.close()

    loop.run(run())
