"""Replies of HTTP/1.1 from bytes, however they are cut: bodies of every kind, and what is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_router.upstream.http1 import ReplyParser

BODY = b'{"id": "c1", "choices": []}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
SIZED = OK + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


def chunked(pieces: list[bytes], extension: bytes = b"", trailer: bytes = b"") -> bytes:
    """Return a body in chunks."""
    sent = b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces)
    return sent + b"0\r\n" + trailer + b"\r\n"


def parsed(*pieces: bytes, end: bool | None = None) -> ReplyParser:
    """Feed the pieces to a parser; `end` says how the connection then ends, None that it stays."""
    parser = ReplyParser()
    parser.expect()
    for piece in pieces:
        parser.feed(piece)
    if end is not None:
        parser.end(clean=end)
    return parser


def outcome(parser: ReplyParser) -> tuple[object, ...]:
    """Return all that a parser has to say."""
    body = b"".join(parser.parts)
    return parser.status, parser.headers, body, parser.size, parser.complete, parser.keep, parser.failed


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut at these places."""
    at = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(at)]


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=5),
    st.sampled_from(["length", "chunks", "end"]),
    st.booleans(),
    st.lists(st.integers(0, 10_000), max_size=12),
)
def test_a_reply_is_the_same_however_it_is_cut(
    pieces: list[bytes], kind: str, interim: bool, places: list[int]
) -> None:
    """With a length, in chunks or until the end, after an interim reply or not: the cuts change nothing."""
    body = b"".join(pieces)
    head = {
        "length": OK + b"content-length: %d\r\n\r\n" % len(body),
        "chunks": OK + b"transfer-encoding: chunked\r\n\r\n",
        "end": OK + b"\r\n",
    }[kind]
    reply = head + (chunked(pieces) if kind == "chunks" else body)
    data = (b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" if interim else b"") + reply
    end = True if kind == "end" else None
    found = parsed(*cut(data, places), end=end)
    assert outcome(found) == outcome(parsed(data, end=end))
    assert (found.status, b"".join(found.parts), found.complete, found.failed) == (200, body, True, None)
    assert found.keep == (kind != "end")
    assert (b"link", b"</x>") not in found.headers


@given(st.lists(st.binary(max_size=60), max_size=6), st.booleans())
def test_any_bytes_are_a_reply_or_a_reason(pieces: list[bytes], clean: bool) -> None:
    """Whatever a server sends, there is a whole reply in the end or one word why not; never an exception."""
    found = parsed(*pieces, end=clean)
    assert found.complete != (found.failed is not None)


@given(st.lists(st.integers(0, 10_000), max_size=6), st.integers(0, len(SIZED) - 1))
def test_a_reply_that_ends_too_early_is_no_reply(places: list[int], kept: int) -> None:
    """Whatever is missing of a body with a length, its reply has failed: closed before it, or broken off."""
    found = parsed(*cut(SIZED[:kept], places), end=True)
    assert (found.complete, found.failed) == (False, "broke_off" if kept else "disconnected")


def test_a_body_until_the_end_needs_a_clean_end() -> None:
    """A connection that is reset has not ended the body that it was to end."""
    assert parsed(OK + b"\r\nhalf", end=False).failed == "broke_off"


@pytest.mark.parametrize(
    ("data", "keep"),
    [
        (SIZED, True),
        (SIZED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1), False),
        (SIZED.replace(b"1.1", b"1.0", 1), False),
        (SIZED.replace(b"1.1", b"1.0", 1).replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n", 1), True),
    ],
    ids=["1.1", "close", "1.0", "1.0 keep-alive"],
)
def test_the_server_says_whether_it_takes_another_request(data: bytes, keep: bool) -> None:
    """By version and `connection`, as HTTP has it."""
    found = parsed(data)
    assert (found.status, b"".join(found.parts), found.complete, found.keep) == (200, BODY, True, keep)


def test_replies_without_a_body_end_with_their_headers() -> None:
    """204 and a length of nought are complete at once, and the connection is kept."""
    for data in (b"HTTP/1.1 204 No Content\r\n\r\n", OK + b"content-length: 0\r\n\r\n"):
        found = parsed(data)
        assert (found.parts, found.complete, found.keep) == ([], True, True)


def test_interim_replies_are_passed_over() -> None:
    """`100 Continue`, once or more, is not the reply; its headers are nobody's."""
    interim = b"HTTP/1.1 100 Continue\r\nx-a: 1\r\n\r\n"
    assert outcome(parsed(interim * 3 + SIZED)) == outcome(parsed(SIZED))
    assert not parsed(interim).complete


def test_chunk_extensions_and_trailers_are_read_past() -> None:
    """They belong to the way, not to the reply."""
    body = chunked([b"ab", b"c"], b";name=value", b"x-checksum: 1\r\n")
    found = parsed(OK + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    assert (found.parts, found.complete, found.keep) == ([b"ab", b"c"], True, True)
    assert [name for name, _ in found.headers] == [b"content-type", b"transfer-encoding"]


@given(st.integers(0, 1 << 18), st.lists(st.integers(0, 1 << 18), max_size=4))
def test_trailers_may_follow_a_body_of_any_size(size: int, places: list[int]) -> None:
    """A long body beside its headers in one block takes nothing of what trailers may have."""
    data = OK + b"transfer-encoding: chunked\r\n\r\n" + chunked([b"a" * (size + 1)], trailer=b"x-checksum: 1\r\n")
    found = parsed(*cut(data, places))
    assert (found.size, found.complete, found.failed) == (size + 1, True, None)


@pytest.mark.parametrize("more", [SIZED, b"garbage", b"HTTP/1.1 408 Request Timeout\r\n\r\n"])
def test_what_follows_a_reply_makes_the_connection_unusable(more: bytes) -> None:
    """The reply stands, but nobody will take what follows it for the reply to another request."""
    found = parsed(SIZED + more)
    assert (found.status, b"".join(found.parts), found.complete, found.keep) == (200, BODY, True, False)


@pytest.mark.parametrize(
    "data",
    [
        b"220 smtp.example ESMTP\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"\x16\x03\x01\x00\xa5\x01",
        b"HTTP/1.1 two hundred\r\n\r\n",
        OK + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        OK + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"content-length: -1\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(data: bytes) -> None:
    """Other protocols, replies that two readers could understand differently, and upgrades that nobody asked for."""
    found = parsed(data)
    assert (found.complete, found.keep, found.failed) == (False, False, "not_http")


@pytest.mark.parametrize("ready", [b"x-long: ", b"HTTP/1.1 100 Continue\r\n\r\n"])
@pytest.mark.parametrize("size", [1000, 1 << 18])
def test_headers_are_bounded(ready: bytes, size: int) -> None:
    """One endless header, or interim replies without end, are refused before they fill the memory."""
    piece = ready * (size // len(ready)) if ready.endswith(b"\r\n\r\n") else b"y" * size
    parser = parsed(b"" if ready.endswith(b"\r\n\r\n") else OK + ready)
    fed = 0
    while parser.failed is None and fed < 1 << 21:
        parser.feed(piece)
        fed += len(piece)
    assert parser.failed == "not_http"
    assert fed <= max(size, 1 << 18)


def test_64_kib_of_headers_are_taken() -> None:
    """Long headers are unusual, not wrong."""
    lines = b"".join(b"x-%03d: %s\r\n" % (i, b"v" * 1000) for i in range(60))
    head = OK + lines + b"content-length: 0\r\n\r\n"
    found = parsed(*cut(head, list(range(0, len(head), 999))))
    assert (found.complete, len(found.headers)) == (True, 62)


@pytest.mark.parametrize("framing", [b"0\r\nx-t: ", b"1;x="], ids=["trailer", "extension"])
def test_an_endless_field_after_the_headers_is_refused(framing: bytes) -> None:
    """One trailer, or one chunk's extension, without an end does not fill the memory."""
    parser = parsed(OK + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n" + framing)
    fed = 0
    while parser.failed is None and fed < 1 << 21:
        parser.feed(b"y" * 1000)
        fed += 1000
    assert parser.failed == "not_http"
    assert fed <= 1 << 18


@pytest.mark.parametrize(("fields", "failed"), [(80, None), (100, "not_http"), (1000, "not_http")])
def test_more_headers_than_clients_read_are_refused(fields: int, failed: str | None) -> None:
    """A reply that Python's http.client could not read, with the proxy's own headers, is no reply."""
    head = OK + b"".join(b"x-%d: y\r\n" % i for i in range(fields)) + b"content-length: 0\r\n\r\n"
    assert parsed(head).failed == failed


def test_endless_trailers_are_refused() -> None:
    """Trailers count as headers."""
    parser = parsed(OK + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n")
    for _ in range(2000):
        parser.feed(b"x-t: " + b"y" * 100 + b"\r\n")
    assert parser.failed == "not_http"
