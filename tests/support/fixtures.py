"""Fixtures that several folders of tests import into their conftest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dami_merge.lab import copy_pair


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models are fastest on one thread, and sums then add up in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The folders of the lab pair."""
    folder = tmp_path_factory.mktemp("lab")
    copy_pair(folder)
    return str(folder / "instruct"), str(folder / "thinking")
