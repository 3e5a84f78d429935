"""Take the pictures of docs/ui.md: the page at /ui on the lab pair, in Chromium.

    python docs/screenshots.py DEMO    # a folder that `dami demo` wrote

Starts two `dami live` servers and a `dami serve` in front of them, of which one is then killed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
CHAIN = "4<5<3<7<5<4<0<5<3<7<2="
DAMI = [sys.executable, "-c", "from dami_router.cli import main; main()"]
ROUTER = """
variants: [{{id: lab-l000, lambda: 0}}, {{id: lab-l050, lambda: 0.5}}, {{id: lab-l100, lambda: 1}}]
backends:
  - {{variant: lab-l000, url: "{0}", protocol: openai, model: "dami:0", identity: "off"}}
  - {{variant: lab-l050, url: "{1}", protocol: openai, model: "dami:0.5", identity: "off"}}
  - {{variant: lab-l100, url: "{0}", protocol: openai, model: "dami:1", identity: "off"}}
probe: {{interval: 1}}
"""


@contextmanager
def started(*arguments: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run a server at a free port; yields its address."""
    command = [*DAMI, *map(str, arguments), "--port", "0", "--json"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
    try:
        assert process.stdout is not None
        said = ""
        while not said.endswith("}\n"):
            said += process.stdout.readline()
        yield json.loads(said)["address"], process
    finally:
        process.kill()
        process.wait()


def ask(address: str, model: str) -> None:
    """Ask once, for the counters."""
    body = {"model": model, "messages": [{"role": "user", "content": CHAIN}]}
    request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode())  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
        reply.read()


def take(browser: Any, url: str, name: str, theme: str, height: int, act: Callable[[Any], None] | None = None) -> None:
    """Open a page, act, and save what is to be seen."""
    context = browser.new_context(viewport={"width": 1200, "height": height}, color_scheme=theme)
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("input.lambda", state="attached")
    if act is not None:
        act(page)
    page.mouse.move(2, 2)
    page.wait_for_timeout(400)
    page.screenshot(path=IMAGES / name)
    context.close()
    print(f"{IMAGES / name}: {(IMAGES / name).stat().st_size // 1024} kB")  # noqa: T201


def settled(page: Any) -> None:
    """Wait for the end of all answers."""
    page.wait_for_function("() => !document.querySelector('.lane[aria-busy]') && document.querySelector('.stats dd')")


def sweep(page: Any) -> None:
    """Answer at six λ, one after the other."""
    page.fill("#prompt", CHAIN)
    page.click("#answer")
    for lambda_ in ("0", "0.2", "0.6", "1", "0.8"):
        settled(page)
        page.locator("input.lambda").fill(lambda_)
    settled(page)
    page.click(".thoughts summary")


def side_by_side(page: Any) -> None:
    """Answer at four λ at once."""
    page.fill("#prompt", CHAIN)
    page.click("#four")
    settled(page)


def main(demo: Path) -> None:
    """Take all pictures."""
    pair = (demo / "lab" / "instruct", demo / "lab" / "thinking", "--name", "lab")
    router = demo / "screenshots.yml"
    with sync_playwright() as playwright, started("live", *pair, "--report", demo) as (live, _):
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        take(browser, f"{live}/ui", "ui-playground.png", "light", 960, sweep)
        take(browser, f"{live}/ui", "ui-side-by-side.png", "dark", 720, side_by_side)
        take(browser, f"{live}/ui#frontier", "ui-frontier.png", "dark", 640)
        with started("live", *pair) as (other, process):
            router.write_text(ROUTER.format(live, other), encoding="utf-8")
            with started("serve", router) as (address, _):
                for i in range(40):
                    ask(address, f"dami:{i % 11 / 10}")
                process.kill()
                for _ in range(4):
                    ask(address, "dami:0.5")
                time.sleep(3)
                take(browser, f"{address}/ui#now", "ui-now.png", "light", 860)
        browser.close()
    router.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
