"""The fixtures of the adapter's tests: the router's test servers, and LiteLLM in a process of its own."""

from __future__ import annotations

from fakes.fixtures import loop, world

__all__ = ["loop", "world"]
