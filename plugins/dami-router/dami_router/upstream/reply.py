"""What a call to a server comes to: a reply that has begun, or a reason in one word why there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from dami_router.messages.request import Request
    from dami_router.upstream.fleet import Replica

__all__ = ["BrokenError", "CallError", "Calls", "Reply", "StaleError", "UnansweredError"]

_WORDS = {
    "refused": "the connection was refused",
    "connect_timeout": "no connection in time",
    "timeout": "no reply in time",
    "disconnected": "the connection was closed before a reply",
    "broke_off": "the reply broke off in its middle",
    "stream_error": "the stream began with an error",
    "not_http": "the reply is not HTTP",
    "too_large": "the reply is too large",
}


class CallError(Exception):
    """A call that failed. `why` is one bounded word."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    @property
    def words(self) -> str:
        """The reason as a sentence has it."""
        return _WORDS.get(self.why, self.why)


class UnansweredError(CallError):
    """A call that gave no usable reply, before its first byte counted."""

    def __init__(self, why: str, *, status: int = 0, retry_after: str | None = None) -> None:
        super().__init__(why)
        self.status, self.retry_after = status, retry_after

    @property
    def counts(self) -> bool:
        """Whether it speaks against the replica: being busy does not."""
        return self.status not in (424, 429)


class StaleError(UnansweredError):
    """The connection ended before any byte of the reply: it may only have been an old one."""


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
        """The headers as they came."""
        ...

    @property
    def first(self) -> bytes:
        """The first bytes."""
        ...

    @property
    def stream(self) -> bool:
        """Whether more may follow."""
        ...

    def rest(self) -> AsyncIterator[bytes]:
        """Yield what follows the first bytes as it comes; raises BrokenError."""
        ...

    def close(self) -> None:
        """End the call: whoever answers stops working on it, unless the reply was read to its end."""
        ...


class Calls(Protocol):
    """How requests reach replicas: over HTTP, or inside this process. `open` before, `close` after."""

    async def open(self) -> None:
        """Get ready."""
        ...

    async def close(self) -> None:
        """End everything."""
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
