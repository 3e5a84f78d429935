"""uvicorn's HTTP protocol with a reply's headers and the first bytes of its body in one write.

uvicorn writes them separately. Each write is a system call that wakes the client: the most expensive step of a proxy.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["CorkedProtocol"]


class CorkedProtocol(HttpToolsProtocol):
    """uvicorn's protocol over a transport that holds a reply's headers until body bytes follow."""

    _corked: _Corked

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wrap the transport."""
        self._corked = _Corked(cast(asyncio.Transport, transport))
        super().connection_made(cast(asyncio.Transport, self._corked))

    def on_response_complete(self) -> None:
        """Write the headers of a reply that has no body."""
        self._corked.flush()
        super().on_response_complete()


class _Corked:
    """A transport that holds a reply's headers back; everything else is delegated."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held = b""
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, together with held bytes; hold the headers of a reply, except an interim one."""
        if self._held:
            data, self._held = self._held + data, b""
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._held = data
            return
        self._transport.write(data)

    def close(self) -> None:
        """Write held bytes, and close."""
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Write held bytes."""
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)
