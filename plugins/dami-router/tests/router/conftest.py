"""The fixtures of the router's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fakes.fixtures import loop, world

if TYPE_CHECKING:
    from fakes.lab import LabModel

__all__ = ["loop", "world"]


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
