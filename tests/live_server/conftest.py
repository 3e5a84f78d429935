"""One live server over the shipped lab pair, and a second engine to compare it with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import uvicorn
from fakes.loop import Loop
from fakes.world import Client

from dami_merge.lab import copy_pair
from dami_merge.live import Engine
from dami_merge.live_server.serving import configure, make_proxy
from dami_router.config import RouterConfig


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
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.stop()


@contextmanager
def served(loop: Loop, engine: Engine, config: RouterConfig) -> Iterator[Client]:
    """Run a real server of an engine at a free port."""
    app = make_proxy(engine, config)
    settings = uvicorn.Config(app, port=0, lifespan="on", log_config=None, timeout_graceful_shutdown=2)
    server = uvicorn.Server(settings)
    task = loop.start(server.serve())
    try:
        loop.run(_until_started(server, task))
        yield Client(server.servers[0].sockets[0].getsockname()[1], app)
    finally:
        server.should_exit = True
        loop.run(_join(task), 20)


@pytest.fixture(scope="session")
def server(loop: Loop, pair: tuple[str, str]) -> Iterator[Client]:
    """A server with the defaults, and room for eight rows."""
    engine = Engine.load(*pair, mode="mixed", max_rows=8)
    with served(loop, engine, configure(engine, None)) as client:
        yield client


def section(tmp_path: Path, text: str, engine: Engine) -> RouterConfig:
    """Return the configuration of a server with a section of router.yml."""
    path = tmp_path / "section.yml"
    path.write_text(text)
    return configure(engine, path)


async def _until_started(server: uvicorn.Server, task: asyncio.Task[object]) -> None:
    while not server.started:
        assert not task.done(), "the server did not start"
        await asyncio.sleep(0.005)


async def _join(task: asyncio.Task[object]) -> None:
    await asyncio.wait([task])
