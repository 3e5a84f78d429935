"""What the lab's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dami_merge.lab.tiny_model import one_thread


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """One thread for all: with more, a busy machine makes models this small a hundred times slower."""
    with one_thread():
        yield
