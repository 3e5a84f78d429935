"""Relay a server's reply to the client: bytes as they arrive, and an error where they stop early."""

from __future__ import annotations

from collections.abc import Callable

from dami_router.messages.encodings import encoding_of
from dami_router.messages.request import Shape
from dami_router.messages.tokens import TokenCount
from dami_router.proxy.wire import Headers, Send, error_event, start
from dami_router.upstream.reply import BrokenError, Reply

__all__ = ["relay", "reply_headers"]

# Headers of the connection itself, and those that the proxy sets.
_DROPPED = frozenset(
    b"connection keep-alive proxy-authenticate proxy-connection te trailer transfer-encoding upgrade "
    b"content-length server date set-cookie x-request-id".split()
)
_OURS = (b"x-dami-", b"access-control-")
_LONGEST_EVENT = 1 << 20

Rewrite = Callable[[bytes], bytes]
"""Rewrites whole events, or a whole body."""


def reply_headers(reply: Reply, ours: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the server's headers without those of its connection, plus the proxy's own."""
    return [pair for pair in reply.headers if pair[0] not in _DROPPED and not pair[0].startswith(_OURS)] + ours


async def relay(
    send: Send, reply: Reply, headers: Headers, shape: Shape, tokens: TokenCount, rewrite: Rewrite | None = None
) -> bool:
    """Send a reply to the client; False where the server broke off, which the client sees as an error event.

    In a stream, bytes after the last whole event are held back until the event is whole: if the
    server dies midway, the client still reads only whole events, then the error.
    """
    tokens.feed(reply.first)
    opaque = (rewrite is not None or reply.stream) and encoding_of(reply.headers) != b""
    if not reply.stream:
        body = rewrite(reply.first) if rewrite and not opaque else reply.first
        await start(send, reply.status, [*headers, (b"content-length", b"%d" % len(body))])
        await send({"type": "http.response.body", "body": body})
        return True
    await start(send, reply.status, headers)
    change = _unchanged if opaque or rewrite is None else rewrite
    events = _Opaque() if opaque else _Events()
    try:
        await _piece(send, change(events.whole(reply.first)))
        async for chunk in reply.rest():
            tokens.feed(chunk)
            await _piece(send, change(events.whole(chunk)))
    except BrokenError as error:
        if opaque:
            return False  # an error event cannot be put into compressed bytes: the connection ends
        await send({"type": "http.response.body", "body": error_event(shape, f"the server's reply {error}")})
        return False
    end = change(events.remains) if events.remains else b""
    await send({"type": "http.response.body", "body": end})
    return True


def _unchanged(data: bytes) -> bytes:
    return data


async def _piece(send: Send, data: bytes) -> None:
    if data:
        await send({"type": "http.response.body", "body": data, "more_body": True})


class _Opaque:
    """Passes on bytes in an encoding that the proxy does not decode."""

    remains = b""

    def whole(self, chunk: bytes) -> bytes:
        """Return the bytes."""
        return chunk


class _Events:
    """Cuts a stream after its last whole event."""

    def __init__(self) -> None:
        self.remains = b""

    def whole(self, chunk: bytes) -> bytes:
        """Return the whole events and keep the rest; an event over 1 MiB is passed on in pieces."""
        data = self.remains + chunk if self.remains else chunk
        plain, windows = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
        cut = max(plain + 2 if plain >= 0 else 0, windows + 4 if windows >= 0 else 0)
        if len(data) - cut > _LONGEST_EVENT:
            cut = len(data)
        self.remains = data[cut:]
        return data[:cut] if cut < len(data) else data
