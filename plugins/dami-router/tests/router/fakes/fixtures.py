"""The fixtures that the tests of every distribution share; a conftest.py imports those that it offers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fakes.loop import Loop
from fakes.world import World

__all__ = ["loop", "world"]


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    """One event loop for all servers of a session."""
    made = Loop()
    yield made
    made.stop()


@pytest.fixture
def world(loop: Loop) -> Iterator[World]:
    """The servers and routers of one test."""
    made = World(loop)
    yield made
    made.close()
