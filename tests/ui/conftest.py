"""A real Chromium for the page at /ui; every test in this folder is skipped where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fakes.fixtures import loop, world
from fakes.loop import Loop
from fakes.world import Client
from support.browser import Open, Visit
from support.fixtures import pair
from support.live_servers import served

from dami_merge.live import Engine
from dami_merge.live_server.launch import configure
from dami_router.config.router_yml import load_section
from dami_router.proxy.page_data import PageData

__all__ = ["loop", "pair", "world"]

CHROMIUM = os.environ.get("DAMI_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.ui)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, see requirements-dev.txt")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium, or DAMI_CHROMIUM=/path/to/it")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Open]:
    """Opens an address; at the end, the console holds no error and no other host was asked."""
    visits: list[tuple[Visit, str]] = []
    with ExitStack() as stack:

        def go(url: str, *, width: int = 1280, height: int = 900, theme: str = "light", **options: Any) -> Visit:
            view = {"width": width, "height": height}
            context = chromium.new_context(viewport=view, color_scheme=theme, reduced_motion="reduce", **options)
            stack.callback(context.close)
            found = Visit(context.new_page())
            visits.append((found, urlsplit(url).netloc))
            found.page.goto(url)
            return found

        yield go
    for found, host in visits:
        assert [text for text in found.said if not any(part in text for part in found.expected)] == []
        assert found.hosts <= {host, ""}


@pytest.fixture(scope="session")
def engine(pair: tuple[str, str]) -> Engine:
    """The engine behind the live server."""
    return Engine.load(*pair, mode="mixed", name="lab-pair")


@pytest.fixture(scope="session")
def live(loop: Loop, engine: Engine) -> Iterator[Client]:
    """A live server over the lab pair, with the page."""
    with served(loop, engine, configure(engine, load_section(None)), hashed=False, page=PageData()) as client:
        yield client
