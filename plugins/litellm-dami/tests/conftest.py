"""The fixtures of the adapter's tests: the router's test servers, and LiteLLM in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakes.loop import Loop
from fakes.world import World


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.stop()


@pytest.fixture
def world(loop: Loop) -> Iterator[World]:
    made = World(loop)
    yield made
    made.close()
