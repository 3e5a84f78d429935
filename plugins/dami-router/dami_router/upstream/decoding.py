"""Replies that a server compressed although it was asked not to: gzip and deflate are decoded, piece by piece."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dami_router.upstream.reply import CallError

if TYPE_CHECKING:
    from dami_router.upstream.pool import Call

__all__ = ["PLAIN", "DecodedCall", "can_decode"]

PLAIN = ("", "identity")
"""Values of content-encoding that change nothing."""

_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_PIECE = 1 << 20


def can_decode(encoding: str) -> bool:
    """Return whether a reply of this content-encoding can be decoded."""
    return encoding in _WINDOWS


class DecodedCall:
    """A call whose body is decoded: at most 1 MiB a read, so that a small reply cannot fill the memory.

    `read` raises CallError, also for bytes that are not what the encoding says.
    """

    def __init__(self, call: Call, encoding: str) -> None:
        self._call, self._unpacker = call, zlib.decompressobj(_WINDOWS[encoding])
        self.status = call.status
        self.headers: Sequence[tuple[bytes, bytes]] = [
            pair for pair in call.headers if pair[0].lower() not in (b"content-encoding", b"content-length")
        ]

    def header(self, name: bytes) -> str:
        """Return a header's first value, "" where there is none."""
        return self._call.header(name)

    async def read(self, until: float | None = None) -> bytes:
        """Return the next decoded bytes; b"" at the end of the body."""
        while True:
            data = self._unpacked(self._unpacker.unconsumed_tail)
            if data:
                return data
            packed = await self._call.read(until)
            if not packed:
                if not self._unpacker.eof:
                    raise CallError("broke_off")
                return b""
            data = self._unpacked(packed)
            if data:
                return data

    def close(self) -> None:
        """End the call."""
        self._call.close()

    def _unpacked(self, packed: bytes) -> bytes:
        try:
            return self._unpacker.decompress(packed, _PIECE) if packed else b""
        except zlib.error:
            raise CallError("not_http") from None
