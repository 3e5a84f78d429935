"""uvicorn's HTTP with a reply's headers and the beginning of its body in one write.

uvicorn writes them apart. Each write is a system call that wakes the client, the dearest thing that a proxy does.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["CorkedProtocol"]


class CorkedProtocol(HttpToolsProtocol):
    """uvicorn's protocol over a transport that keeps a reply's headers until there is something to follow them."""

    _corked: _Corked

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Put the cork on."""
        self._corked = _Corked(cast(asyncio.Transport, transport))
        super().connection_made(cast(asyncio.Transport, self._corked))

    def on_response_complete(self) -> None:
        """Let out what nothing follows: the headers of a reply without a body."""
        self._corked.flush()
        super().on_response_complete()


class _Corked:
    """A transport that holds a reply's headers back; all else is the transport's own."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held = b""
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, together with what was held back; hold back what begins a reply, but for an interim one."""
        if self._held:
            data, self._held = self._held + data, b""
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._held = data
            return
        self._transport.write(data)

    def close(self) -> None:
        """Write what is held back, and close."""
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Write what is held back."""
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)
