"""Tasks that end together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

__all__ = ["all_of"]


async def all_of(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all at once, to their ends; the first error cancels the others and is raised as it is, in no group."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
