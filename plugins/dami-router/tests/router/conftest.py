"""The fixtures of the router's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from fakes.loop import Loop
from fakes.world import World

if TYPE_CHECKING:
    from fakes.lab import LabModel


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


@pytest.fixture(scope="session")
def instruct() -> LabModel:
    """The lab pair's Instruct model."""
    pytest.importorskip("torch", reason="the lab's models need torch")
    from fakes.lab import LabModel

    return LabModel(0.0)


@pytest.fixture(scope="session")
def thinking() -> LabModel:
    """The lab pair's Thinking model."""
    pytest.importorskip("torch", reason="the lab's models need torch")
    from fakes.lab import LabModel

    return LabModel(1.0)
