"""How a long operation reports the bytes that it has moved."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

__all__ = ["Progress"]

Progress = Callable[[int], AbstractContextManager[Callable[[int], object]]]
