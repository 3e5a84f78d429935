"""What arrives from clients is bounded before their key is looked at: headers, bodies, time, connections."""

from __future__ import annotations

import gzip
import http.client
import json
import resource
import socket
import threading
import zlib

import pytest
from fakes.upstream import chunk, stream
from fakes.world import Client, World

from dami_router.config.router_schema import Limits
from dami_router.proxy.server import allow_files

CHAT = json.dumps({"model": "dami", "messages": [{"role": "user", "content": "2+2?"}]}).encode()
SMALL = "limits: {header_bytes: 2000, header_fields: 20, header_s: 0.3, body_s: 0.3, connections: 3, body_bytes: 4000}"


@pytest.fixture
def client(world: World) -> Client:
    return world.router(("v-l000", world.upstream("v-l000")), extra=f"{SMALL}\napi_keys_env: [KEY]", environment=KEYS)


KEYS = {"KEY": "sesame"}


def exchanged(port: int, *pieces: bytes) -> bytes:
    """Send bytes and return all that comes until the server ends the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except OSError:
                break
        received = b""
        try:
            while piece := connection.recv(65536):
                received += piece
        except ConnectionResetError:
            pass
        return received


def status(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "header",
    [b"x-long: " + b"a" * 3000, b"x" * 3000 + b": a", b"\r\n".join(b"x-%d: a" % i for i in range(30))],
    ids=["long value", "long name", "many"],
)
def test_headers_beyond_the_limits_are_431_without_a_key(client: Client, header: bytes) -> None:
    """One long header, a long name, or many: each is refused, and the connection ends."""
    reply = exchanged(client.port, b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + header + b"\r\n\r\n")
    assert status(reply) == 431
    assert b"2000 bytes or 20 fields" in reply


def test_a_header_that_never_ends_is_refused_while_it_comes(client: Client) -> None:
    """A header of 50 MB is refused after the first kilobytes; the memory that it takes is bounded."""
    begin = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-long: "
    assert status(exchanged(client.port, begin, *[b"a" * (1 << 20)] * 50)) == 431


def test_a_long_address_counts_as_a_header(client: Client) -> None:
    """The request line is within the same limit."""
    assert status(exchanged(client.port, b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nhost: x\r\n\r\n")) == 431


def test_headers_that_take_too_long_are_408(client: Client) -> None:
    """A client that stops in the middle of its headers is answered and its connection ends."""
    assert status(exchanged(client.port, b"GET /health HTTP/1.1\r\nhost: ")) == 408


def test_a_connection_that_sends_nothing_ends(client: Client) -> None:
    """Without a byte there is no request to answer: the connection is closed."""
    assert exchanged(client.port) == b""


def test_a_second_request_has_the_same_time_for_its_headers(client: Client) -> None:
    """On a kept connection, the headers of the next request are bounded too, and the first one is answered."""
    reply = exchanged(client.port, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /health HTTP/1.1\r\nho")
    assert reply.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in reply


def test_a_body_that_stops_is_408_and_the_connection_ends(client: Client) -> None:
    """A request whose body stops after one byte does not hold its connection."""
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sesame\r\ncontent-length: 100\r\n\r\n{"
    )
    assert status(exchanged(client.port, head)) == 408


def test_a_request_refused_before_its_body_ends_does_not_stay_open(client: Client) -> None:
    """401 is sent at once, and the connection ends soon though the client never sends the rest."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
    assert status(exchanged(client.port, head)) == 401


def test_a_connection_too_many_is_503(client: Client) -> None:
    """Beyond the limit of open connections, a further one is refused at once, and room comes back."""
    held = []
    for _ in range(3):
        connection = socket.create_connection(("127.0.0.1", client.port), timeout=60)
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        held.append(connection)
    reply = exchanged(client.port)
    assert status(reply) == 503
    assert b"retry-after: 1" in reply
    for connection in held:
        connection.close()
    assert client.get("/health").status == 200


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)],
)
def test_a_compressed_body_is_decoded(client: Client, encoding: str, pack: object) -> None:
    """gzip and deflate are decoded, and the server gets the plain body."""
    answer = client.post("/v1/chat/completions", pack(CHAT), content_encoding=encoding, authorization="Bearer sesame")  # type: ignore[operator]
    assert answer.status == 200


def test_a_compressed_body_is_bounded_unpacked(client: Client) -> None:
    """A small body that unpacks to more than the limit is 413."""
    bomb = gzip.compress(b" " * 1_000_000)
    assert len(bomb) < 4000
    answer = client.post("/v1/chat/completions", bomb, content_encoding="gzip", authorization="Bearer sesame")
    assert answer.status == 413


@pytest.mark.parametrize(
    ("encoding", "body", "expected", "words"),
    [
        ("br", CHAT, 415, "gzip or deflate"), ("zstd", CHAT, 415, "gzip or deflate"),
        ("gzip", CHAT, 400, "content-encoding"), ("gzip", gzip.compress(CHAT)[:-9], 400, "cut off"),
        ("gzip", gzip.compress(CHAT) + b"more", 400, "followed by"),
    ],
)  # fmt: skip
def test_an_encoding_that_cannot_be_read_is_told(
    client: Client, encoding: str, body: bytes, expected: int, words: str
) -> None:
    """Other encodings are 415; damaged bodies are 400 in words of their own."""
    answer = client.post("/v1/chat/completions", body, content_encoding=encoding, authorization="Bearer sesame")
    assert answer.status == expected
    assert words in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"\xef\xbb\xbf" + CHAT, "byte-order mark"), (b'{"model":"dami","seed":' + b"9" * 4500 + b"}", "4300 digits"),
     (b'{"a":"model","seed":' + b"9" * 4500 + b"}", "4300 digits"), (b"\xff\xfe", "UTF-8")],
    ids=["mark", "digits", "digits, scanned", "utf-16"],
)  # fmt: skip
def test_odd_bodies_are_told_in_words_of_their_own(world: World, body: bytes, words: str) -> None:
    """A byte-order mark, and a number longer than Python reads, are named."""
    client = world.router(("v-l000", world.upstream("v-l000")))
    answer = client.post("/v1/chat/completions", body)
    assert answer.status == 400
    assert words in answer.json["error"]["message"]


def test_a_trailer_is_no_header_of_the_next_request(client: Client) -> None:
    """Fields after a chunked body are dropped, and the request is answered once."""
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sesame\r\nconnection: close\r\n"
        b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\nx-api-key: other\r\n\r\n" % (len(CHAT), CHAT)
    )
    reply = exchanged(client.port, request)
    assert status(reply) == 200
    assert reply.count(b"HTTP/1.1 ") == 1


def test_a_pipelined_request_that_is_unfinished_does_not_cut_the_first(client: Client) -> None:
    """The reply to the first request is whole; the second one, whose body stops, gets its 408."""
    first = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    second = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sesame\r\ncontent-length: 9\r\n\r\n{"
    )
    reply = exchanged(client.port, first + second)
    assert status(reply) == 200
    assert reply.count(b"HTTP/1.1 408") == 1


def test_a_request_that_asks_for_http_2_is_answered_in_http_1(client: Client) -> None:
    """Java's client asks for h2c with its first request: the wish is ignored, its body is read."""
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sesame\r\n"
        b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(CHAT), CHAT)
    )
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        connection.sendall(request)
        assert status(connection.recv(65536)) == 200


def test_a_client_that_still_sends_reads_why_it_was_refused(client: Client) -> None:
    """A body beyond the limit is refused at once, and the reply is not lost while the client goes on sending."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sesame\r\n"
    head += b"content-length: 100000\r\n\r\n"
    assert status(exchanged(client.port, head, *[b"a" * 10_000] * 10)) == 413


def test_deeply_nested_fields_are_told(world: World) -> None:
    """A body nested beyond what Python reads is a 400, wherever in it the nesting is."""
    client = world.router(("v-l000", world.upstream("v-l000")))
    for field in (b"user", b"messages", b"reasoning"):
        answer = client.post("/v1/chat/completions", b'{"' + field + b'":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
        assert answer.status == 400
        assert "nested too deeply" in answer.json["error"]["message"]


def test_one_model_is_found_without_v1_too(world: World) -> None:
    """GET /models/{id} is GET /v1/models/{id}."""
    assert world.router(("v-l000", world.upstream("v-l000"))).get("/models/dami").json["id"] == "dami"


@pytest.mark.parametrize("target", [b"/health", b"x:80"])
def test_connect_is_refused_once(client: Client, target: bytes) -> None:
    """CONNECT is no method of this server: one refusal, and the next request on another connection is answered."""
    reply = exchanged(client.port, b"CONNECT " + target + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert status(reply) in (400, 405)
    assert client.get("/health").status == 200


def test_connect_is_refused_in_a_few_words(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """CONNECT asks for a tunnel: whatever its address, it is refused, and nothing fails inside."""
    for address, expected in ((b"/health", 405), (b"x:80", 400)):
        assert status(exchanged(client.port, b"CONNECT " + address + b" HTTP/1.1\r\nhost: x\r\n\r\n")) == expected
    assert "Traceback" not in caplog.text


def test_every_pipelined_wish_for_http_2_is_ignored(client: Client) -> None:
    """Requests that arrive in one piece are all answered in order, each as if it had not asked."""
    wish = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    last = b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    reply = exchanged(client.port, wish * 3 + last)
    assert (reply.count(b"HTTP/1.1 200"), reply.count(b"HTTP/1.1 404")) == (3, 1)


@pytest.mark.parametrize(
    "bad", [b"NOISE\r\n\r\n", b"GET /v1/models HTTP/1.1\r\nx-long: " + b"a" * 3000 + b"\r\n\r\n"], ids=["400", "431"]
)
def test_what_follows_whole_requests_does_not_cost_them_their_replies(client: Client, bad: bytes) -> None:
    """Requests are answered in order, then the connection ends: what cannot be read is never the first one's reply."""
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sesame\r\ncontent-length: %d\r\n\r\n%s"
    )
    reply = exchanged(client.port, request % (len(CHAT), CHAT) * 2 + bad)
    assert (reply.count(b"HTTP/1.1 "), reply.count(b"HTTP/1.1 200")) == (2, 2)
    assert b"connection: close" in reply.rpartition(b"HTTP/1.1 ")[2]


def test_noise_during_a_stream_does_not_get_into_it(world: World) -> None:
    """A client that sends noise while it reads a stream reads all of the stream, and nothing else."""
    gate = threading.Event()
    low = world.upstream("v-l000", stream(chunk("4"), b"data: [DONE]\n\n", gate=gate))
    client = world.router(("v-l000", low))
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        body = CHAT[:-1] + b', "stream": true}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body)
        received = b""
        while b"data: " not in received:
            received += connection.recv(65536)
        connection.sendall(b"NOISE\r\n\r\n")
        gate.set()
        while piece := connection.recv(65536):
            received += piece
    assert received.count(b"HTTP/1.1 ") == 1
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@pytest.mark.parametrize(("key", "expected"), [(b"sesame", 400), (b"wrong", 401)])
def test_a_broken_body_is_told_to_its_own_request(client: Client, key: bytes, expected: int) -> None:
    """Chunks that are none: the request that they belong to gets the 400, unless it was answered before."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer " + key + b"\r\n"
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        connection.sendall(head + b"transfer-encoding: chunked\r\n\r\n")
        received = connection.recv(65536) if expected == 401 else b""
        connection.sendall(b"zz\r\n")
        while piece := connection.recv(65536):
            received += piece
    assert (status(received), received.count(b"HTTP/1.1 ")) == (expected, 1)


def test_a_client_of_another_protocol_reads_why_it_was_refused(client: Client) -> None:
    """TLS, HTTP/2 without an upgrade, or noise: 400 as JSON, though the client goes on sending."""
    for begin in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"NOISE\r\n\r\n",
    ):
        reply = exchanged(client.port, begin, *[b"\0" * 10_000] * 10)
        assert status(reply) == 400
        assert "HTTP/1.1" in json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["message"]


def chunked(trailer: bytes) -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sesame\r\n"
    return head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n%s" % (len(CHAT), CHAT, trailer)


def test_a_trailer_is_no_header(world: World) -> None:
    """What comes after a chunked body is dropped: it reaches no server as a header."""
    low = world.upstream("v-l000")
    client = world.router(("v-l000", low))
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        connection.sendall(chunked(b"traceparent: late\r\n\r\n"))
        assert status(connection.recv(65536)) == 200
    assert "traceparent" not in low.calls[0].headers


def test_a_trailer_that_never_ends_ends_the_connection(client: Client) -> None:
    """Trailers are within the limit of headers: the connection ends long before 50 MB have come."""
    assert exchanged(client.port, chunked(b"x-long: "), *[b"a" * (1 << 20)] * 50) == b""


def test_a_pipelined_request_may_end_after_the_first_reply(world: World) -> None:
    """A second request whose body is still on its way when the first reply is written is answered, too."""
    client = world.router(("v-l000", world.upstream("v-l000")))
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(CHAT), CHAT)
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        connection.sendall(request + request[:-9])
        received = connection.recv(65536)
        assert status(received) == 200
        connection.sendall(request[-9:])
        while received.count(b"HTTP/1.1 200") < 2:
            piece = connection.recv(65536)
            assert piece, received
            received += piece


def test_a_body_that_follows_a_refusal_leaves_the_connection_in_use(client: Client) -> None:
    """A client that sends headers and body separately reads 401, and then asks again on the same connection."""
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    for key, expected in (("wrong", 401), ("sesame", 200)):
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("authorization", f"Bearer {key}")
        connection.putheader("content-length", str(len(CHAT)))
        connection.endheaders()
        if expected == 401:
            assert connection.sock.recv(8, socket.MSG_PEEK) == b"HTTP/1.1"
        connection.send(CHAT)
        reply = connection.getresponse()
        reply.read()
        assert reply.status == expected
        local = connection.sock.getsockname()
    assert local == connection.sock.getsockname()
    connection.close()


def test_serving_may_open_as_many_files_as_its_limits_need() -> None:
    """The soft limit of open files is raised to what connections and concurrency need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        allow_files(Limits(connections=600, concurrency=10))
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 620
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
