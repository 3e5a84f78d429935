"""One live server over the shipped lab pair, and a second engine to compare it with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from fakes.fixtures import loop, world
from fakes.loop import Loop
from fakes.world import Client
from support.live_servers import served

from dami_merge.lab import copy_pair
from dami_merge.live import Engine
from dami_merge.live_server.launch import configure
from dami_router.config.router_yml import load_section

__all__ = ["loop", "world"]


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


@pytest.fixture(scope="session")
def alone(pair: tuple[str, str]) -> Engine:
    """An engine of the tests' own: what it answers to one request alone is what the server must answer."""
    return Engine.load(*pair, mode="mixed")


@pytest.fixture(scope="session")
def eight(pair: tuple[str, str]) -> Engine:
    """The engine of the server, with room for eight rows."""
    return Engine.load(*pair, mode="mixed", max_rows=8)


@pytest.fixture(scope="session")
def server(loop: Loop, eight: Engine) -> Iterator[Client]:
    """A server with the defaults."""
    with served(loop, eight, configure(eight, load_section(None))) as client:
        yield client
