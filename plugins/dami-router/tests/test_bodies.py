"""Reading a request's body: encodings, their limits, and clients that are slow, gone or lie about what they send."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_router.proxy.bodies import read_body
from dami_router.proxy.wire import HttpError


def read(body: bytes, encoding: bytes | None = None, limit: int = 1000) -> bytes:
    """Read a body that comes in one piece."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    headers = [] if encoding is None else [(b"content-encoding", encoding)]
    return asyncio.run(read_body({"headers": headers}, receive, limit, 60.0))


def refusal(body: bytes, encoding: bytes | None = None, limit: int = 1000) -> HttpError:
    """Return why a body is refused."""
    with pytest.raises(HttpError) as caught:
        read(body, encoding, limit)
    return caught.value


@given(st.binary(max_size=200))
def test_compressed_bodies_are_unpacked(body: bytes) -> None:
    """gzip and deflate, under their usual spellings; a plain body is what it is."""
    for encoding in (b"gzip", b"x-gzip", b" GZip "):
        assert read(gzip.compress(body), encoding) == body
    assert read(zlib.compress(body), b"deflate") == body
    for encoding in (None, b"identity", b"", b" Identity"):
        assert read(body, encoding) == body


@pytest.mark.parametrize("encoding", [b"br", b"zstd", b"gzip, br", b"gz"])
def test_other_encodings_are_415(encoding: bytes) -> None:
    """Refused before the body is read; the message names what can be read."""
    error = refusal(b"x", encoding)
    assert error.status == 415
    assert "gzip" in error.message


def test_a_bomb_is_refused_by_its_unpacked_size() -> None:
    """Up to the limit a body is unpacked, beyond it is 413, however small it came."""
    bomb = gzip.compress(b"0" * 1001)
    assert len(bomb) < 100
    assert read(bomb, b"gzip", 1001) == b"0" * 1001
    error = refusal(bomb, b"gzip", 1000)
    assert (error.status, "larger than 1000 bytes" in error.message) == (413, True)
    assert refusal(gzip.compress(b"0" * (1 << 24)), b"gzip", 100_000).status == 413


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"plain text", b"gzip"), (gzip.compress(b"x"), b"deflate"), (zlib.compress(b"x"), b"gzip"),
        (gzip.compress(b"x" * 50)[:-1], b"gzip"), (gzip.compress(b"x") + b"y", b"gzip"), (b"", b"gzip"),
        (gzip.compress(b"x") + gzip.compress(b"y"), b"gzip"),
    ],
)  # fmt: skip
def test_a_body_that_is_not_what_it_says_is_400(body: bytes, encoding: bytes) -> None:
    """Other bytes, a body that is cut off, and one with something behind it."""
    error = refusal(body, encoding)
    assert (error.status, "body" in error.message) == (400, True)


def test_a_body_over_the_limit_is_413() -> None:
    """One byte more than the limit is refused; that the connection ends is the guard's, tested over HTTP."""
    error = refusal(b"x" * 1001)
    assert error.status == 413
    assert read(b"x" * 1000) == b"x" * 1000


def test_a_body_that_does_not_come_is_408() -> None:
    """A client that stops in the middle of its body is told after the limit."""

    async def receive() -> dict[str, Any]:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(), "more_body": True}
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    pieces = [b"x"]
    with pytest.raises(HttpError, match=r"longer than 0.01 seconds") as caught:
        asyncio.run(read_body({"headers": []}, receive, 1000, 0.01))
    assert caught.value.status == 408
