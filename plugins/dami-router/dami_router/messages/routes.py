"""The routes that generate: the format of each, and which protocols of backends have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dami_router.messages.request import Shape

__all__ = ["OWN_PATHS", "ROUTES", "GenerationRoute", "canonical"]

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

_UNVERSIONED = frozenset({"/chat/completions", "/completions", "/responses", "/messages", "/models"})


def canonical(path: str) -> str:
    """Return a path with the `/v1` that clients leave out whose base URL lacks it; other paths unchanged."""
    return f"/v1{path}" if path in _UNVERSIONED or path.startswith("/models/") else path
