"""The routes that generate: the format of each, and which protocols of backends have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dami_router.messages.request import Shape

__all__ = ["OWN_PATHS", "ROUTES", "UNVERSIONED", "GenerationRoute"]

_TGI = frozenset({"tgi", "live"})
_OPENAI = frozenset({"openai", "vllm"})


@dataclass(frozen=True, slots=True)
class GenerationRoute:
    """A route: `shape` is its format, `protocols` the backends that have it, None where all have it.

    `live` is `dami live` with its own engine, `vllm` with vLLM.
    """

    shape: Shape
    protocols: frozenset[str] | None = None


ROUTES: Mapping[str, GenerationRoute] = {
    "/v1/chat/completions": GenerationRoute("openai"),
    "/v1/completions": GenerationRoute("openai"),
    "/v1/responses": GenerationRoute("openai", _OPENAI),
    "/v1/messages": GenerationRoute("anthropic", _OPENAI),
    "/generate": GenerationRoute("tgi", _TGI),
    "/generate_stream": GenerationRoute("tgi", _TGI),
    "/": GenerationRoute("tgi", _TGI),
}

OWN_PATHS = ("/v1/route", "/v1/models", "/health", "/info", "/metrics")
"""The proxy's other routes."""

UNVERSIONED: Mapping[str, str] = {
    path.removeprefix("/v1"): path
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/models")
}
"""Paths without `/v1`, as clients send them whose base URL lacks it."""
