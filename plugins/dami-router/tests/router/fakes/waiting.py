"""Waiting for what happens: the one way in which tests wait.

A test says what it waits for and goes on as soon as it is so. The limit is there so that a broken
test ends; no test says how fast anything must be.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

LIMIT = 120.0
PAUSE = 0.01


def until(condition: Callable[[], T], *, limit: float = LIMIT, pause: float = PAUSE) -> T:
    """Return a condition's value once it is true; fails after `limit` seconds and says what did not happen."""
    end = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < end, _in_vain(condition, limit)
        time.sleep(pause)
    return found


async def happened(condition: Callable[[], T], *, limit: float = LIMIT, pause: float = PAUSE) -> T:
    """`until` for tests that run in an event loop, which goes on meanwhile."""
    end = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < end, _in_vain(condition, limit)
        await asyncio.sleep(pause)
    return found


def _in_vain(condition: Callable[[], Any], limit: float) -> str:
    try:
        what = inspect.getsource(condition).strip()
    except (OSError, TypeError):
        what = repr(condition)
    return f"did not happen in {limit:g} s: {what}"
