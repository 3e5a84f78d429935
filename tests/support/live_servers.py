"""Real live servers on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fakes.loop import Loop
from fakes.world import Client, World

from dami_merge.live import Engine
from dami_merge.live_server.launch import configure, make_proxy
from dami_router.config.router_yml import load_section
from dami_router.config.specs import RouterConfig
from dami_router.proxy.page_data import PageData


@contextmanager
def served(
    loop: Loop, engine: Engine, config: RouterConfig, *, hashed: bool = True, page: PageData | None = None
) -> Iterator[Client]:
    """Run a real server of an engine at a free port; its files are hashed when it is handed out, unless told not."""
    world = World(loop)
    try:
        client = world.serve(make_proxy(engine, config, page=page))
        if hashed:
            wait_for_hashes()
        yield client
    finally:
        world.close()


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
