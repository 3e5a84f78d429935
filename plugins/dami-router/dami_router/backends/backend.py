"""What a protocol must provide, and what a server reports about itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from dami_router.config.specs import BackendSpec, VariantSpec

__all__ = ["Get", "Identity", "Post", "ProbeError", "Reader", "WrongIdentityError", "matches"]

Get = Callable[[str], Awaitable[tuple[int, Any]]]
"""Fetch a path of the backend: status, and the body as JSON (None where it is not JSON)."""

Post = Callable[[str, Mapping[str, Any]], Awaitable[tuple[int, Any]]]
"""Send JSON to a path of the backend; the same result."""


class ProbeError(Exception):
    """The server does not answer as its protocol requires; it may later."""


class WrongIdentityError(Exception):
    """The server answers, but serves something other than the configuration names."""


@dataclass(frozen=True)
class Identity:
    """What a probe found: the server's name for the model, and what it can do.

    `capabilities` has `log_probs`, `prompt_log_probs`, `top_n` and `chat_template`, each True,
    False, or None where it is unknown. `info` is TGI's own description.
    """

    model: str
    revision: str | None = None
    capabilities: Mapping[str, bool | None] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)


class Reader(Protocol):
    """How to probe the servers of one protocol."""

    async def identify(self, backend: BackendSpec, variant: VariantSpec, get: Get) -> Identity:
        """Identify the server; raises ProbeError, or WrongIdentityError where it serves something else."""
        ...

    async def explore(self, identity: Identity, post: Post) -> Mapping[str, bool | None]:
        """Find out what the server can do, with a one-token request."""
        ...


def matches(name: str, backend: BackendSpec, variant: VariantSpec) -> bool:
    """Return whether a server's model name means this variant: the configured name, an id, or a folder of that name."""
    if backend.model is not None:
        return name == backend.model
    return name in variant.names or name.rstrip("/").rsplit("/", 1)[-1] in variant.names
