"""Small pairs and engines for the live engine's tests."""

from __future__ import annotations

from support.fixtures import _one_thread

__all__ = ["_one_thread"]
