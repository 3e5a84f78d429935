"""The outcome of a call to a server: a reply that has begun, or one word for why there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from dami_router.messages.request import Request
    from dami_router.upstream.fleet import Replica

__all__ = ["BrokenError", "CallError", "Calls", "Reply", "StaleError", "UnansweredError"]

_WORDS = {
    "refused": "the connection was refused",
    "connect_timeout": "connecting timed out",
    "untrusted": "the server's certificate is not trusted",
    "not_tls": "the server speaks no TLS that this machine accepts; is its URL http?",
    "no_authorities": "the file of trusted authorities cannot be read",
    "unresolved": "the host name does not resolve",
    "unreachable": "the host cannot be reached",
    "timeout": "the reply timed out",
    "disconnected": "the connection closed before a reply",
    "broke_off": "the reply broke off midway",
    "stream_error": "the stream began with an error",
    "not_http": "the reply is not HTTP",
    "web_page": "the reply is a web page",
    "too_large": "the reply is too large",
    "given_up": "the server stopped answering",
}


class CallError(Exception):
    """A call that failed. `why` is one bounded word, `detail` more for people."""

    def __init__(self, why: str, detail: str = "") -> None:
        super().__init__(why)
        self.why, self.detail = why, detail

    @property
    def words(self) -> str:
        """The reason in words."""
        words = _WORDS.get(self.why, self.why)
        return f"{words}: {self.detail}" if self.detail else words


class UnansweredError(CallError):
    """A call that gave no usable reply, before its first byte counted."""

    def __init__(self, why: str, detail: str = "", *, status: int = 0, retry_after: str | None = None) -> None:
        super().__init__(why, detail)
        self.status, self.retry_after = status, retry_after

    @property
    def counts(self) -> bool:
        """Whether it counts against the replica; being busy does not."""
        return self.status not in (424, 429)

    @property
    def of_one_server(self) -> bool:
        """Whether another server behind the same address may answer: it died, or its gateway lost it. Never a hang."""
        return self.why in ("refused", "disconnected") or (self.status in (500, 502, 503) and not self.retry_after)


class StaleError(UnansweredError):
    """The connection ended before any byte of the reply; it may only have been stale."""


class BrokenError(Exception):
    """The reply broke off, or stalled, after its first byte."""


class Reply(Protocol):
    """A reply whose first bytes are there: all of them, unless it is a stream. Must be closed."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """The headers, with names in lower case."""
        ...

    @property
    def first(self) -> bytes:
        """The first bytes of the body."""
        ...

    @property
    def stream(self) -> bool:
        """Whether the reply is a stream, so that more may follow."""
        ...

    def rest(self) -> AsyncIterator[bytes]:
        """Yield the bytes after the first ones as they arrive; raises BrokenError."""
        ...

    def close(self) -> None:
        """End the call; the server stops generating, unless the reply was read to its end."""
        ...


class Calls(Protocol):
    """How requests reach replicas: over HTTP, or inside this process. Call `open` before and `close` after."""

    async def open(self) -> None:
        """Prepare for calls."""
        ...

    async def close(self) -> None:
        """End all calls."""
        ...

    async def send(self, replica: Replica, request: Request, lambda_: float, *, fresh: bool = False) -> Reply:
        """Send a request that wants λ and wait for the reply's first bytes; raises UnansweredError."""
        ...

    async def get(self, replica: Replica, path: str, timeout: float) -> tuple[int, Any]:
        """Fetch JSON from a replica, for a probe; raises CallError."""
        ...

    async def post(
        self, replica: Replica, path: str, data: Mapping[str, Any], timeout: float, *, fresh: bool = True
    ) -> tuple[int, Any]:
        """Send JSON to a replica, for a probe; raises CallError."""
        ...
