"""Content encodings: gzip and deflate are decoded, in requests and in replies; of any other, the bytes are opaque."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zlib import _Decompress as Decoder

__all__ = ["can_decode", "decoder", "encoding_of"]

_WINDOWS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}


def encoding_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the content-encoding that headers (names in lower case) state; b"" for plain bytes."""
    encoding = b""
    for name, value in headers:
        if name == b"content-encoding":
            encoding = encoding + b", " + value if encoding else value
    encoding = encoding.strip().lower() if encoding else b""
    return b"" if encoding == b"identity" else encoding


def can_decode(encoding: bytes) -> bool:
    """Return whether `decoder` knows an encoding."""
    return encoding in _WINDOWS


def decoder(encoding: bytes) -> Decoder:
    """Return a new zlib decompressor for one body, or for one member of a gzip body."""
    return zlib.decompressobj(_WINDOWS[encoding])
