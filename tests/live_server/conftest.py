"""One live server over the shipped lab pair, and a second engine to compare it with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakes.fixtures import loop, world
from fakes.loop import Loop
from fakes.world import Client
from support.fixtures import _one_thread, pair
from support.live_servers import served

from dami_merge.live import Engine
from dami_merge.live_server.launch import configure
from dami_router.config.router_yml import load_section

__all__ = ["_one_thread", "loop", "pair", "world"]


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
