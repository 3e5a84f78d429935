"""Real live servers on loopback."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fakes.loop import Loop
from fakes.world import Client

from dami_merge.live import Engine
from dami_merge.live_server.serving import configure, make_proxy
from dami_router.config import RouterConfig, load_section


@contextmanager
def served(loop: Loop, engine: Engine, config: RouterConfig, *, hashed: bool = True) -> Iterator[Client]:
    """Run a real server of an engine at a free port; its files are hashed when it is handed out, unless told not."""
    app = make_proxy(engine, config)
    settings = uvicorn.Config(app, port=0, lifespan="on", log_config=None, timeout_graceful_shutdown=2)
    server = uvicorn.Server(settings)
    task = loop.start(server.serve())
    try:
        loop.run(_until_started(server, task))
        if hashed:
            wait_for_hashes()
        yield Client(server.servers[0].sockets[0].getsockname()[1], app)
    finally:
        server.should_exit = True
        loop.run(_join(task), 20)


def section(tmp_path: Path, text: str, engine: Engine) -> RouterConfig:
    """Return the configuration of a server with a section of router.yml."""
    path = tmp_path / "section.yml"
    path.write_text(text)
    return configure(engine, load_section(path))


def wait_for_hashes() -> None:
    """Wait until the servers of this process know the hashes of their files."""
    for thread in threading.enumerate():
        if thread.name == "dami-hash":
            thread.join(60)


async def _until_started(server: uvicorn.Server, task: asyncio.Task[object]) -> None:
    while not server.started:
        assert not task.done(), "the server did not start"
        await asyncio.sleep(0.005)


async def _join(task: asyncio.Task[object]) -> None:
    await asyncio.wait([task])
