"""An open page in a real browser, as the tests of the page at /ui see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fakes.world import Client, World

from dami_router.config.router_yml import parse_config
from dami_router.proxy import Proxy
from dami_router.proxy.page_data import PageData

__all__ = ["Open", "Visit", "routed"]

PATIENCE_MS = 60_000


@dataclass
class Visit:
    """An open page, what its console said, and the hosts that it asked."""

    page: Any
    said: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    expected: tuple[str, ...] = ()
    """Parts of console messages that belong to what the test does, such as the status of a refused request."""

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", lambda m: self.said.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def text(self, selector: str) -> str:
        """Return the text that a reader sees in an element."""
        return str(self.page.locator(selector).first.inner_text())

    def texts(self, selector: str) -> list[str]:
        """Return the text of every element that matches."""
        return [str(text) for text in self.page.locator(selector).all_inner_texts()]

    def until(self, condition: str, argument: object = None) -> None:
        """Wait until a condition in JavaScript holds."""
        self.page.wait_for_function(condition, arg=argument)

    def shows(self, selector: str, part: str) -> None:
        """Wait until an element has a text."""
        self.until("([s, part]) => document.querySelector(s)?.innerText.includes(part)", [selector, part])

    def ask(self, prompt: str) -> None:
        """Write a prompt, and ask for the answer."""
        self.page.fill("#prompt", prompt)
        self.page.click("#answer")

    def done(self, lanes: int = 1) -> None:
        """Wait until that many lanes are there and each has ended its answer, well or not."""
        self.until(
            "n => document.querySelectorAll('.lane:not([aria-busy]) .stats dd').length >= 2 * n"
            " && document.querySelectorAll('.lane').length === n && !document.querySelector('.lane[aria-busy]')",
            lanes,
        )

    def stays_narrow(self) -> bool:
        """Say whether nothing is wider than the window: the page itself never scrolls sideways."""
        return bool(self.page.evaluate("document.scrollingElement.scrollWidth <= window.innerWidth"))


Open = Callable[..., Visit]


def routed(world: World, text: str, **environment: str) -> Client:
    """Start a router with the page."""
    return world.serve(Proxy(parse_config(text, environment), page=PageData()))
