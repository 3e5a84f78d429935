"""The page at /ui in a real browser: loading, keys, the frontier, the state of the servers, access for everyone."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.loop import Loop
from fakes.upstream import chunk, plain, stream
from fakes.world import Client, World, router_yml
from prometheus_client import Counter
from support.browser import Open, Visit, routed

from dami_router.choosing.policy import Figures
from dami_router.config.router_yml import parse_config
from dami_router.config.specs import VariantSpec
from dami_router.evaluating.frontier_file import FrontierFile
from dami_router.proxy import Proxy
from dami_router.proxy.page_data import PageData

END = (chunk("", "stop"), b"data: [DONE]\n\n")
VIEWS = ("playground", "frontier", "now")
AXE = os.environ.get("DAMI_AXE", "")


def report() -> FrontierFile:
    """Six variants, of which one is dominated, and two ways of routing, as a report has them."""

    def point(kind: str, name: str, lambda_: float, accuracy: float, tokens: float) -> dict[str, Any]:
        return {
            "kind": kind, "name": name, "lambda": lambda_, "dominated": name == "λ = 0.2",
            "accuracy": {"mean": accuracy, "low": accuracy - 0.04, "high": accuracy + 0.04},
            "tokens": {"mean": tokens, "low": 0.9 * tokens, "high": 1.1 * tokens},
        }  # fmt: skip

    figures = [
        (0.0, 0.68, 3.5),
        (0.2, 0.67, 10.2),
        (0.4, 0.705, 20.0),
        (0.6, 0.765, 28.3),
        (0.8, 0.783, 45),
        (1, 0.785, 62),
    ]
    points = [point("variant", f"λ = {x:g}", x, a, t) for x, a, t in figures]
    points += [point("routed", "routed", 0.32, 0.8, 20.2), point("routed", "routed again", 0.32, 0.801, 20.4)]
    points += [point("capped", "λ=1, cap 15", 1.0, 0.633, 19.5)]
    points += [point("oracle", "oracle", 0.11, 0.915, 11.1)]
    return FrontierFile.model_validate({"title": "held-out queries", "queries": 400, "points": points})


@pytest.fixture
def measured(world: World) -> Client:
    """A router of three variants, with a report."""
    ups = [(name, world.upstream(name)) for name in ("v-l000", "v-l040", "v-l100")]
    return world.serve(Proxy(parse_config(router_yml(*ups)), page=PageData([report()])))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_view_loads_without_an_error(measured: Client, visit: Open, theme: str) -> None:
    """No error in the console and no other host, in both themes; the title and the navigation say where one is."""
    page = visit(f"{measured.url}/ui", theme=theme)
    for view in VIEWS:
        page.page.click(f"nav a[href='#{view}']")
        page.page.wait_for_selector(f"#view-{view}:not([hidden]) .card")
        assert page.text("h1 >> visible=true").lower() == view
        assert page.page.title().lower().startswith(view)
        assert page.page.locator("nav a[aria-current='page']").get_attribute("href") == f"#{view}"
    back = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(247, 247, 245)") is (theme == "light")


@pytest.mark.parametrize("width", [320, 390, 768])
def test_no_view_is_wider_than_the_screen(measured: Client, visit: Open, width: int) -> None:
    """On a phone the page never scrolls sideways, with four answers, long tables and the chart; tables scroll alone."""
    page = visit(f"{measured.url}/ui", width=width, height=700)
    page.ask("x" * 400)
    page.page.click("#four")
    page.done(3)
    for view in VIEWS:
        page.page.click(f"nav a[href='#{view}']")
        page.page.wait_for_selector(f"#view-{view}:not([hidden]) .card")
        assert page.stays_narrow(), view


def test_the_theme_can_be_chosen_and_stays(measured: Client, visit: Open) -> None:
    """The button goes from the system's theme to light and to dark, and a reload keeps the choice."""
    page = visit(f"{measured.url}/ui", theme="light")
    page.page.wait_for_selector("input.lambda")
    for name in ("light", "dark"):
        page.page.click("#theme")
        assert page.page.locator("#theme").get_attribute("aria-label") == f"Theme: {name}"
    page.page.reload()
    page.page.wait_for_selector("input.lambda")
    assert page.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 25)"


def test_a_wrong_key_is_refused_and_the_right_one_is_kept_in_memory_only(world: World, visit: Open) -> None:
    """The page asks for the key, says when it is wrong, works with the right one, stores it nowhere, and asks again."""
    up = world.upstream("v-l000", stream(chunk("open"), *END))
    client = routed(world, router_yml(("v-l000", up), extra="api_keys_env: [KEY]"), KEY="sesame")
    page = visit(f"{client.url}/ui")
    page.expected = ("401",)
    page.page.wait_for_selector("#login[open]")
    for _ in range(3):
        page.page.keyboard.press("Escape")
        page.page.wait_for_selector("#login[open]")
    for wrong in ("open", "schlüssel"):
        page.page.fill("#key", wrong)
        page.page.keyboard.press("Enter")
        page.shows("#login-why", "does not accept this key")
    page.page.fill("#key", "sesame")
    page.page.keyboard.press("Enter")
    page.page.wait_for_selector("input.lambda")
    page.ask("x")
    page.shows(".answer-text", "open")
    stored = page.page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert "sesame" not in stored
    assert "sesame" not in page.page.content()
    page.page.reload()
    page.page.wait_for_selector("#login[open]")


def test_the_frontier_of_a_report(measured: Client, visit: Open) -> None:
    """Every point has a mark, a label and a row with intervals; the dominated one is hollow and said in words."""
    page = visit(f"{measured.url}/ui#frontier")
    page.page.wait_for_selector("#frontier svg .mark")
    assert [page.page.locator(f".mark.{kind}").count() for kind in ("variant", "capped", "routed", "oracle")] == [
        6,
        1,
        2,
        1,
    ]
    assert page.page.locator(".mark.dominated").count() == 1
    rows = page.texts("#frontier tbody tr")
    assert rows[1].split("\t")[:5] == ["λ = 0.2", "0.20", "67.0 [63.0, 71.0]", "10.2 [9.2, 11.2]", "dominated"]
    assert [row.split("\t")[0] for row in rows[6:]] == ["★ routed", "★ routed again", "□ λ=1, cap 15", "◇ oracle"]
    labels = page.page.evaluate(
        "[...document.querySelectorAll('.chart .label')].map((l) => l.getBoundingClientRect().toJSON())"
    )
    assert len(labels) == 10
    legend = ["variant", "thinking capped", "routed", "oracle", "dominated", "best random mixture of variants"]
    assert [text.lstrip("●□★◇○- ") for text in page.texts(".legend li")] == legend
    for i, a in enumerate(labels):
        for b in labels[:i]:
            assert (
                a["right"] <= b["left"] or b["right"] <= a["left"] or a["bottom"] <= b["top"] or b["bottom"] <= a["top"]
            )
    page.page.get_by_role("button", name="Try it: λ = 1", exact=True).click()
    assert page.text("h1 >> visible=true") == "Playground"
    assert page.text(".lambda-value") == "1"


def test_the_frontier_of_a_manifest(world: World, visit: Open) -> None:
    """Each benchmark of the manifest can be chosen; the routed point, which it lacks, has its command."""
    figures = {"a": (0.0, 0.5, 100.0), "b": (1.0, 0.8, 900.0)}
    variants = tuple(
        VariantSpec(
            name, x, frozenset({name}), figures={"math": Figures(a, t, 100), "code": Figures(a / 2, t, 50)},
        )
        for name, (x, a, t) in figures.items()
    )  # fmt: skip
    ups = [(name, world.upstream(name)) for name in ("v-l000", "v-l100")]
    config = replace(parse_config(router_yml(*ups)), variants=variants, backends=())
    page = visit(f"{world.serve(Proxy(config, page=PageData())).url}/ui#frontier")
    page.page.wait_for_selector("#frontier svg .mark")
    row = page.texts("#frontier tbody tr")[0].split("\t")
    assert row[:4] == ["a", "0.00", "50.0 [40.4, 59.6]", "100.0"]
    assert "dami eval rollouts.jsonl --report report" in page.text("#frontier pre")
    page.page.select_option("#frontier select", label="code")
    assert page.texts("#frontier tbody tr")[1].split("\t")[2].startswith("40.0 [")
    assert page.text("#frontier h2") == "code"


def test_a_family_without_figures_says_how_to_get_them(live: Client, visit: Open) -> None:
    """The three commands that measure a family and show it here."""
    page = visit(f"{live.url}/ui#frontier")
    page.page.wait_for_selector("#frontier pre")
    commands = " ".join(page.texts("#frontier pre"))
    for command in ("dami rollout", "dami eval", "--write-manifest", "dami serve router.yml --report", "dami live"):
        assert command in commands


def test_an_operator_sees_which_server_is_down_and_what_answers_instead(world: World, visit: Open) -> None:
    """A killed server is named with the reason and with the variant that takes its requests, without a reload."""
    ups = [(name, world.upstream(name)) for name in ("v-l000", "v-l040", "v-l100")]
    client = routed(world, router_yml(*ups, extra="probe: {interval: 1, timeout: 20}"))
    page = visit(f"{client.url}/ui#now")
    page.shows("#summary", "All 3 servers are up.")
    assert not page.page.locator("#health").is_visible()
    world.loop.run(ups[1][1].stop())
    page.shows("#summary", f"v-l040 at {ups[1][1].url} is down: the connection was refused.")
    page.shows("#summary", "v-l000 takes its requests.")
    page.shows("#health", "1 of 3 down")
    row = next(row for row in page.texts("#state tbody tr") if row.startswith("v-l040"))
    assert "down" in row
    for _ in range(3):
        assert client.chat(model="dami:0.4").variant == "v-l000"
    world.loop.run(ups[1][1].start())
    page.shows("#summary", "All 3 servers are up.")


def test_the_state_counts_requests_tokens_and_lambda(world: World, visit: Open) -> None:
    """Requests, tokens by variant, λ by tenth, fallbacks and failed calls are those of the router's metrics."""
    first, second = world.pair(plain(500), None)
    client = routed(world, router_yml(("v-l000", first), ("v-l100", second)))
    for lambda_ in (0, 0, 1):
        client.chat(model=f"dami:{lambda_}")
    page = visit(f"{client.url}/ui#now")
    page.until("() => document.querySelector('.columns')")
    tiles = dict(zip(page.texts(".tiles dt"), page.texts(".tiles dd"), strict=True))
    assert (tiles["Requests"], tiles["With an error"]) == ("3", "0")
    assert page.texts(".kinds p") == ["By status: 200 × 3", "By route: /v1/chat/completions × 3"]
    tables = {box.get_attribute("aria-label"): box.inner_text() for box in page.page.locator("#state .scroll").all()}
    assert tables["Tokens by variant"].splitlines()[-1].split("\t") == ["v-l100", "3", "21", "7"]
    assert tables["Fallbacks"].splitlines()[-1].split("\t") == ["v-l000", "v-l100", "2"]
    assert tables["Failed calls"].splitlines()[-1].split("\t")[1:] == ["status 500", "2"]
    assert [column.split("\n")[0] for column in page.texts(".columns li")][::10] == ["2", "1"]
    assert "Mean λ 0.33" in page.text("#state")


def test_metrics_of_shadow_decisions_are_shown_where_there_are_any(world: World, visit: Open) -> None:
    """Metrics named `dami_shadow_…`, here of a counter of the test's own, make one more table."""
    client = routed(world, router_yml(("v-l000", world.upstream("v-l000"))))
    shadow = Counter("dami_shadow_decisions", "x", ["variant"], registry=client.app.metrics.registry)
    page = visit(f"{client.url}/ui#now")
    page.shows("#state", "Servers")
    assert "Shadow decisions" not in page.text("#state")
    shadow.labels("v-l100").inc(3)
    page.shows("#state", "Shadow decisions")
    assert page.texts("[aria-label='Shadow decisions'] tbody tr") == ["decisions\tvariant v-l100\t3"]


def test_a_router_that_is_gone_is_said(loop: Loop, world: World, visit: Open) -> None:
    """When the router itself ends, the page says so and keeps what it shows; when it is back, the message goes."""
    page_world = World(loop)
    client = routed(page_world, router_yml(("v-l000", page_world.upstream("v-l000"))))
    page = visit(f"{client.url}/ui#now")
    page.shows("#summary", "The server is up.")
    page.expected = ("ERR_",)
    page_world.close()
    page.shows("#offline", "The router does not reply. Is it still running?")
    assert page.text("#summary") == "● The server is up."


def test_the_page_works_behind_a_path_prefix(world: World, visit: Open) -> None:
    """All its addresses are relative: behind `/llm/` it loads, reads the state and answers."""

    class Prefixed(Proxy):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                assert scope["path"].startswith("/llm/"), scope["path"]
                scope = {**scope, "path": scope["path"].removeprefix("/llm")}
            await super().__call__(scope, receive, send)

    up = world.upstream("v-l000", stream(chunk("through"), *END))
    client = world.serve(Prefixed(parse_config(router_yml(("v-l000", up))), page=PageData()))
    for entrance in ("ui", "ui/"):
        page = visit(f"{client.url}/llm/{entrance}")
        page.ask("x")
        page.shows(".answer-text", "through")
        page.page.click("nav a[href='#now']")
        page.shows("#summary", "The server is up.")


def test_a_link_fills_in_the_prompt(live: Client, visit: Open) -> None:
    """`#playground?prompt=…&lambda=…` opens the page ready to answer; nothing is asked before the button."""
    page = visit(f"{live.url}/ui#playground?prompt=8%2B3%3D&lambda=0.2")
    page.shows(".lambda-value", "0.2")
    assert page.page.locator("#prompt").input_value() == "8+3="
    assert page.text(".empty") == "No answer yet."


@pytest.mark.skipif(not Path(AXE).is_file(), reason="needs axe-core: `make test-ui` fetches it from npm")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(measured: Client, visit: Open, theme: str) -> None:
    """Every view, with answers and with an open dialog, is free of serious and critical findings of axe-core."""
    page = visit(f"{measured.url}/ui", theme=theme, bypass_csp=True)
    page.ask("x")
    page.page.click("#four")
    page.done(3)
    page.page.add_script_tag(path=AXE)
    for view in VIEWS:
        page.page.click(f"nav a[href='#{view}']")
        page.page.wait_for_selector(f"#view-{view}:not([hidden]) .card")
        assert serious(page) == [], view
    page.page.evaluate("document.getElementById('login').showModal()")
    assert serious(page) == []


def serious(page: Visit) -> list[str]:
    """What axe finds serious or critical, with the elements."""
    found = page.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    bad = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {json.dumps([node['html'][:200] for node in one['nodes']])}" for one in bad]
