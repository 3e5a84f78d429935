"""Tasks that end together."""

from __future__ import annotations

import asyncio

import pytest

from dami_router.errors import FailureError
from dami_router.shared.tasks import all_of


def test_the_first_error_ends_all_and_is_raised_as_it_is() -> None:
    """Finished work stays done, waiting work is cancelled, and the caller sees no group of errors."""
    ended: list[str] = []

    async def done() -> None:
        ended.append("done")

    async def waiting() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def failing() -> None:
        await asyncio.sleep(0)
        raise FailureError("the disk is full")

    with pytest.raises(FailureError, match="the disk is full"):
        asyncio.run(all_of(one() for one in (done, waiting, failing)))
    assert ended == ["done", "cancelled"]
