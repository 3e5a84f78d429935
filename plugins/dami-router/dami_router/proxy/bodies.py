"""A request's body: read within limits of size and time, and decoded where it is compressed."""

from __future__ import annotations

import asyncio
import zlib

from dami_router.messages.encodings import can_decode, decoder, encoding_of
from dami_router.proxy.wire import ClientGoneError, HttpError, Receive, Scope, header

__all__ = ["read_body"]


async def read_body(scope: Scope, receive: Receive, limit: int, seconds: float) -> bytes:
    """Return the body, decoded; raises HttpError or, where the client leaves first, ClientGoneError.

    413 above `limit` bytes, packed or unpacked; 408 after `seconds`; 415 for an encoding other than gzip and deflate.
    """
    encoding = encoding_of(scope["headers"])
    if encoding and not can_decode(encoding):
        raise HttpError(415, "expected a body that is plain, or encoded as gzip or deflate")
    if "whole" in scope.get("state", ()):  # it is here already: neither its announced length nor a clock is needed
        body = await _received(receive, limit)
    else:
        declared = header(scope, b"content-length")
        if declared is not None and declared.isdigit() and int(declared[:20]) > limit:
            raise _too_large(limit)
        try:
            async with asyncio.timeout(seconds):
                body = await _received(receive, limit)
        except TimeoutError:
            raise HttpError(408, f"the body took longer than {seconds:g} seconds") from None
    return _decoded(body, encoding, limit) if encoding else body


async def _received(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    body, size, more = b"", 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body, more = message.get("body", b""), message.get("more_body", False)
        size += len(body)
        if size > limit:
            raise _too_large(limit)
        if more or parts:
            parts.append(body)
    return b"".join(parts) if parts else body


def _decoded(body: bytes, encoding: bytes, limit: int) -> bytes:
    unpacker = decoder(encoding)
    try:
        data = unpacker.decompress(body, limit + 1)
    except zlib.error:
        raise HttpError(400, "the body is not what its content-encoding says") from None
    if len(data) > limit:
        raise _too_large(limit)
    if not unpacker.eof or unpacker.unused_data:
        raise HttpError(400, "the compressed body is cut off, or followed by other bytes")
    return data


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"the body is larger than {limit} bytes")
