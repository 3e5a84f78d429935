"""Replies that a server compressed although it was asked not to: gzip and deflate are decoded, piece by piece."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dami_router.messages.encodings import decoder
from dami_router.upstream.reply import CallError

if TYPE_CHECKING:
    from dami_router.upstream.pool import Call

__all__ = ["DecodedCall"]

_PIECE = 1 << 20
_MEMBER = b"\x1f"
"""How a further member of a gzip body begins: there may be several, one after the other."""


class DecodedCall:
    """A call whose body is decoded: at most 1 MiB a read, so that a small reply cannot fill the memory.

    `read` raises CallError, also for bytes that are not what the encoding says.
    """

    def __init__(self, call: Call, encoding: bytes) -> None:
        self._call, self._encoding = call, encoding
        self._unpacker, self._packed = decoder(encoding), b""
        self.status = call.status
        self.headers: Sequence[tuple[bytes, bytes]] = [
            pair for pair in call.headers if pair[0] not in (b"content-encoding", b"content-length")
        ]

    def header(self, name: bytes) -> str:
        """Return a header's first value, "" where there is none."""
        return self._call.header(name)

    @property
    def complete(self) -> bool:
        """Whether the body is known to have been read to its end; only a last `read` tells."""
        return False

    async def read(self, until: float | None = None) -> bytes:
        """Return the next decoded bytes; b"" at the end of the body."""
        while True:
            while self._packed:
                data = self._unpacked()
                if data:
                    return data
            self._packed = await self._call.read(until)
            if not self._packed:
                if not self._unpacker.eof:
                    raise CallError("broke_off")
                return b""

    def close(self) -> None:
        """End the call."""
        self._call.close()

    def _unpacked(self) -> bytes:
        if self._unpacker.eof:
            if not self._packed.startswith(_MEMBER):
                self._packed = b""  # padding
                return b""
            self._unpacker = decoder(self._encoding)
        try:
            data = self._unpacker.decompress(self._packed, _PIECE)
        except zlib.error:
            raise CallError("not_http") from None
        self._packed = self._unpacker.unused_data if self._unpacker.eof else self._unpacker.unconsumed_tail
        return data
