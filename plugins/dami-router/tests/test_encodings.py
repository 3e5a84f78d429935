"""Content encodings: what headers state, and what can be decoded."""

from __future__ import annotations

import gzip
import zlib

import pytest

from dami_router.messages.encodings import can_decode, decoder, encoding_of


@pytest.mark.parametrize(
    ("values", "encoding"),
    [((), b""), ((b"identity",), b""), ((b" GZip ",), b"gzip"), ((b"br",), b"br"), ((b"gzip", b"br"), b"gzip, br"),
     ((b"",), b""), ((b"Identity",), b"")],
)  # fmt: skip
def test_headers_state_one_encoding(values: tuple[bytes, ...], encoding: bytes) -> None:
    """In lower case, without spaces; several of them are one that nothing decodes, and `identity` is none."""
    headers = [(b"content-type", b"gzip"), *((b"content-encoding", value) for value in values)]
    assert encoding_of(headers) == encoding


def test_gzip_and_deflate_are_decoded_and_nothing_else() -> None:
    """Under both of gzip's names; an encoding on top of another one is not."""
    assert (
        decoder(b"gzip").decompress(gzip.compress(b"a")) == decoder(b"x-gzip").decompress(gzip.compress(b"a")) == b"a"
    )
    assert decoder(b"deflate").decompress(zlib.compress(b"a")) == b"a"
    assert [can_decode(name) for name in (b"gzip", b"x-gzip", b"deflate")] == [True] * 3
    assert not any(can_decode(name) for name in (b"", b"br", b"zstd", b"gzip, br"))
