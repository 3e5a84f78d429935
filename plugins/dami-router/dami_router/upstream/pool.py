"""Connections to servers, kept for a while after a reply and reused, the most recent first."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NamedTuple

from dami_router.upstream.connection import Connection
from dami_router.upstream.reply import CallError

__all__ = ["Call", "Origin", "Pool"]

_UNKNOWN_AUTHORITY = (18, 19, 20, 21)
"""OpenSSL's codes for a certificate that is sound, but signed by nobody that is trusted."""
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)


class Origin(NamedTuple):
    """Where a connection leads."""

    host: str
    port: int
    tls: bool
    ca: Path | None = None
    """The authorities that a certificate must come from, as a file; None for the system's."""


class Pool:
    """Opens connections within `connect_s` seconds, and keeps idle ones for `keepalive_s`; `loop` is its event loop."""

    def __init__(self, connect_s: float, keepalive_s: float) -> None:
        self._connect_s, self._keepalive_s = connect_s, keepalive_s
        self.loop = asyncio.get_running_loop()
        self._idle: dict[Origin, deque[Connection]] = {}
        self._open: set[Connection] = set()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._tls: dict[Path | None, ssl.SSLContext] = {}

    async def call(self, origin: Origin, head: bytes, body: bytes, until: float, *, fresh: bool = False) -> Call:
        """Send a request and wait for the reply's headers, until a deadline of the loop's time; raises CallError."""
        connection = (None if fresh else self.take(origin)) or await self.connect(origin)
        try:
            connection.send(head, body, until)
            await connection.head()
        except BaseException:
            connection.abort()
            raise
        return Call(self, origin, connection)

    def take(self, origin: Origin) -> Connection | None:
        """Return an idle connection; None where none is recent and alive."""
        idle = self._idle.get(origin)
        oldest = self.loop.time() - self._keepalive_s
        while idle:
            connection = idle.pop()
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    async def connect(self, origin: Origin) -> Connection:
        """Open a connection; raises CallError."""
        tls = self._context(origin.ca) if origin.tls else None
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self._open.discard), origin.host, origin.port, ssl=tls
                )
        except TimeoutError:
            raise CallError("connect_timeout") from None
        except ssl.SSLCertVerificationError as error:
            advice = "; name its authority as `ca`" if error.verify_code in _UNKNOWN_AUTHORITY else ""
            raise CallError("untrusted", f"{error.verify_message}{advice}") from None
        except ssl.SSLError:
            raise CallError("not_tls") from None
        except socket.gaierror:
            raise CallError("unresolved", origin.host) from None
        except OSError as error:
            raise CallError("unreachable" if error.errno in _NO_ROUTE else "refused") from None
        if not connection.ended:
            self._open.add(connection)
        return connection

    def _context(self, ca: Path | None) -> ssl.SSLContext:
        if ca not in self._tls:
            try:
                self._tls[ca] = ssl.create_default_context(cafile=ca)
            except OSError:
                raise CallError("no_authorities", str(ca)) from None
        return self._tls[ca]

    def give_back(self, origin: Origin, connection: Connection) -> None:
        """Keep a connection whose reply was read to its end; close any other."""
        if not connection.reusable:
            connection.abort()
            return
        connection.idle_since = self.loop.time()
        idle = self._idle.get(origin)
        if idle is None:
            idle = self._idle[origin] = deque()
        idle.append(connection)
        if self._sweep_timer is None:
            self._sweep_timer = self.loop.call_later(self._keepalive_s, self._sweep)

    def _sweep(self) -> None:
        """Close connections that were idle for too long, the oldest first."""
        self._sweep_timer = None
        oldest = self.loop.time() - self._keepalive_s
        for idle in self._idle.values():
            while idle and (idle[0].idle_since <= oldest or not idle[0].reusable):
                idle.popleft().abort()
        if any(self._idle.values()):
            self._sweep_timer = self.loop.call_later(self._keepalive_s, self._sweep)

    def close(self) -> None:
        """Close all connections, also those in use."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()


class Call:
    """One request on a connection of a pool, and its reply. Must be closed."""

    def __init__(self, pool: Pool, origin: Origin, connection: Connection) -> None:
        self._pool, self._origin, self._connection = pool, origin, connection
        self.status, self.headers = connection.reply.status, connection.reply.headers
        self._closed = False

    def header(self, name: bytes) -> str:
        """Return a header's first value, "" where there is none."""
        for key, value in self.headers:
            if key == name:
                return value.decode("latin-1")
        return ""

    @property
    def complete(self) -> bool:
        """Whether the body has been read to its end."""
        reply = self._connection.reply
        return reply.complete and not reply.parts

    @property
    def unframed(self) -> bool:
        """Whether the end of the connection was the end of the body, so that a part of it looks like all of it."""
        reply = self._connection.reply
        return not reply.keep and not reply.framed

    def read(self, until: float | None = None) -> Coroutine[Any, Any, bytes]:
        """Return the next bytes of the body, waiting for them if needed; b"" at its end. Raises CallError."""
        return self._connection.read(until)

    def close(self) -> None:
        """Keep the connection for the next call if the reply is complete, else close it; safe to repeat."""
        if not self._closed:
            self._closed = True
            self._pool.give_back(self._origin, self._connection)
