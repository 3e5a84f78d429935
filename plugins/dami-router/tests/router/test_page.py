"""The page at /ui without a browser: its files and their headers, and the two addresses that it reads."""

from __future__ import annotations

import json
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from fakes.upstream import plain
from fakes.waiting import until
from fakes.world import Client, World, router_yml

from dami_router.choosing.policy import Figures
from dami_router.commands.serve import serve
from dami_router.config.router_yml import parse_config
from dami_router.config.specs import RouterConfig, VariantSpec
from dami_router.errors import MisuseError
from dami_router.estimators.chain import Chain
from dami_router.estimators.fixed import Fixed
from dami_router.evaluating.frontier_file import FrontierFile, load_frontier
from dami_router.proxy import Proxy
from dami_router.proxy.page_data import PageData, measured_frontiers, wilson

FOLDER = files("dami_router.proxy") / "page"
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
EVERY_SECOND = "probe: {interval: 1, timeout: 20}"


def paged(world: World, text: str, page: PageData | None = None, **environment: str) -> Client:
    """Start a proxy that answers /ui."""
    return world.serve(Proxy(parse_config(text, environment), page=page or PageData()))


def servers(client: Client) -> dict[str, Any]:
    """The state of each server, by variant."""
    return {server["variant"]: server for server in client.get("/ui/now").json["servers"]}


def test_every_file_that_the_page_names_is_there(world: World) -> None:
    """The page and all that it loads have their media type, and a policy under which only this host is asked."""
    client = paged(world, router_yml(("v-l000", world.upstream("v-l000"))))
    loaded = re.findall(r'(?:href|src)="(ui/[^"]+)"', SOURCES["index.html"])
    imported = {f"ui/{name}" for text in SOURCES.values() for name in re.findall(r'from "\./([\w.]+)"', text)}
    assert {"ui/look.css", "ui/page.css", "ui/page.js", "ui/theme.js"} <= set(loaded)
    for name in ("ui", *loaded, *imported):
        found = client.get(f"/{name}")
        assert found.status == 200
        assert found.headers["content-type"].startswith(KINDS[name.rpartition(".")[2].replace("ui", "html")])
        policy = found.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; ")
        assert "require-trusted-types-for 'script'" in policy
        assert found.headers["x-content-type-options"] == "nosniff"


def test_the_page_needs_nothing_from_elsewhere_and_parses_no_markup() -> None:
    """No file names another host, sets HTML from text, or stores anything but the theme."""
    for name, text in SOURCES.items():
        assert set(re.findall(r"https?://[^\s\"'`]+", text)) <= {"http://www.w3.org/2000/svg"}, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
        assert not re.search(r"(?:href|src|action)=\"/", text), f"{name}: an address that is not relative"
        assert set(re.findall(r"(?:local|session)Storage\.\w+\((.+?)[,)]", text)) <= {'"dami-theme"'}, name


def test_a_browser_that_has_a_file_gets_a_304(world: World) -> None:
    """The etag of a file is its content's; HEAD has the same headers; `/ui/` leads to `/ui`, also behind a prefix."""
    client = paged(world, router_yml(("v-l000", world.upstream("v-l000"))))
    first = client.get("/ui/page.js")
    again = client.get("/ui/page.js", if_none_match=first.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    assert client.get("/ui/page.js", if_none_match='"other"').status == 200
    head = client.call("HEAD", "/ui", None, {})
    assert (head.status, head.body, head.headers["etag"]) == (200, b"", client.get("/ui").headers["etag"])
    moved = client.get("/ui/")
    assert (moved.status, moved.headers["location"]) == (308, "../ui")
    assert client.post("/ui", {}).headers["allow"] == "GET, HEAD, OPTIONS"
    assert client.get("/ui/index.html").status == client.get("/ui/../ui").status == 404


def test_without_a_page_there_is_none(world: World) -> None:
    """A router that was not given a page answers 404 at all its addresses."""
    client = world.router(("v-l000", world.upstream("v-l000")))
    assert {client.get(path).status for path in ("/ui", "/ui/page.js", "/ui/data", "/ui/now")} == {404}


def test_the_files_are_open_and_the_data_needs_the_key(world: World) -> None:
    """With keys configured, a browser can load the page and ask for the key; figures and servers need it."""
    text = router_yml(("v-l000", world.upstream("v-l000")), extra="api_keys_env: [KEY]")
    client = paged(world, text, KEY="sesame")
    assert {client.get(path).status for path in ("/ui", "/ui/page.js", "/ui/look.css")} == {200}
    assert {client.get(path).status for path in ("/ui/data", "/ui/now")} == {401}
    assert client.get("/ui/data", authorization="Bearer open").status == 401
    assert client.get("/ui/data", authorization="Bearer sesame").json["name"] == "dami"
    assert "sesame" not in client.get("/ui/now", authorization="Bearer sesame").body.decode()


def test_the_data_says_what_can_be_asked_for(world: World) -> None:
    """Variants with their λ and whether a server has them, the estimators, and whether any λ is served."""
    text = (
        "variants: [{id: a, lambda: 0}, {id: b, lambda: 0.5, opens_think: true}, {id: c, lambda: 1}]\nbackends:\n"
        f'  - {{variant: a, url: "{world.upstream("a").url}", protocol: openai}}\n'
        f'  - {{variant: b, url: "{world.upstream("b").url}", protocol: openai}}\n'
        "estimator: {chain: [effort], fixed: 0.25}\n"
    )
    data = paged(world, text).get("/ui/data").json
    assert data["variants"] == [
        {"id": "a", "lambda": 0, "served": True, "opens_think": False},
        {"id": "b", "lambda": 0.5, "served": True, "opens_think": True},
        {"id": "c", "lambda": 1, "served": False, "opens_think": False},
    ]
    assert (data["estimators"], data["fixed"]) == (["effort"], 0.25)
    assert (data["any_lambda"], data["opens_think_from"], data["frontiers"]) == (False, None, [])


def test_a_live_server_is_told_apart(world: World) -> None:
    """Behind a live server every λ is served, from the λ on at which its template opens a think block."""
    live = world.live(opens_think_from=0.4)
    client = paged(world, f'backends: [{{url: "{live.url}", protocol: live}}]')
    data = client.get("/ui/data").json
    assert (data["any_lambda"], data["opens_think_from"]) == (True, 0.4)
    (server,) = client.get("/ui/now").json["servers"]
    assert (server["lambda"], server["health"], server["instead"]) == (None, "alive", None)
    assert server["model"] == "org/Instruct + org/Thinking"
    odd = world.live(instruct={"name": 5}, thinking=None, opens_think_from="x")
    client = paged(world, f'backends: [{{url: "{odd.url}", protocol: live}}]')
    assert (client.get("/ui/data").json["opens_think_from"], client.get("/ui/now").status) == (None, 200)


def test_the_state_says_which_server_is_down_and_who_answers_instead(world: World) -> None:
    """A killed server is dead with the reason; its requests go to the variant that the policy takes, or a replica."""
    ups = [(name, world.upstream(name)) for name in ("v-l000", "v-l040", "v-l100", "v-l100")]
    client = paged(world, router_yml(*ups, extra=EVERY_SECOND))
    assert {server["health"] for server in client.get("/ui/now").json["servers"]} == {"alive"}
    world.loop.run(ups[1][1].stop())
    until(lambda: servers(client)["v-l040"]["health"] == "dead")
    found = servers(client)["v-l040"]
    assert (found["trouble"], found["instead"]) == ("the connection was refused", "v-l000")
    assert client.chat(model="dami:0.4").variant == "v-l000"
    assert [s["instead"] for s in client.get("/ui/now").json["servers"] if s["variant"] == "v-l100"] == ["v-l100"] * 2
    world.loop.run(ups[0][1].stop())
    until(lambda: servers(client)["v-l000"]["health"] == "dead")
    assert servers(client)["v-l000"]["instead"] == "v-l100"
    for _, up in ups[2:]:
        world.loop.run(up.stop())
    until(lambda: {s["health"] for s in client.get("/ui/now").json["servers"]} == {"dead"})
    assert {s["instead"] for s in client.get("/ui/now").json["servers"]} == {None}


def test_the_state_has_the_breaker_and_every_metric(world: World) -> None:
    """Breakers and counts are those of /metrics: a failing server opens its breaker, the other answers."""
    failing, good = world.pair(plain(500), None)
    client = paged(
        world, router_yml(("v-l000", failing), ("v-l100", good), extra="breaker: {failures: 2, open_s: 600}")
    )
    for _ in range(3):
        assert client.chat(model="dami:0").variant == "v-l100"
    found = client.get("/ui/now").json
    assert {s["variant"]: s["breaker"] for s in found["servers"]} == {"v-l000": "open", "v-l100": "closed"}
    assert found["metrics"]["dami_fallbacks_total"] == [[{"chosen": "v-l000", "answered": "v-l100"}, 2.0]]
    assert [labels["status"] for labels, _ in found["metrics"]["dami_requests_total"]] == ["200"]
    assert found["metrics"]["dami_lambda_count"] == [[{}, 3]]
    assert not [name for name in found["metrics"] if name.endswith("_created")]


@pytest.mark.parametrize(
    ("share", "n", "low", "high"),
    # At 0 of n it ends at z² / (n + z²); at a half it is ½ ± z / (2 √(n + z²)).
    [(0.5, 100, 0.40383, 0.59617), (0.0, 10, 0.0, 0.27753), (1.0, 10, 0.72247, 1.0), (0.0, 1, 0.0, 0.79345)],
)
def test_the_interval_of_an_accuracy_is_wilsons(share: float, n: int, low: float, high: float) -> None:
    """The score interval, which stays within 0 and 1 and has a width at both ends."""
    assert wilson(share, n) == pytest.approx((low, high), abs=1e-4)


def variant(id: str, lambda_: float, **figures: Figures) -> VariantSpec:
    return VariantSpec(id, lambda_, frozenset({id}), figures=figures)


def test_the_manifests_figures_make_one_frontier_for_each_benchmark() -> None:
    """Accuracy has an interval where n is known; a variant that the policy leaves out is marked."""
    variants = (
        variant("a", 0.0, math=Figures(0.5, 100, 100), code=Figures(0.4, 80)),
        variant("b", 0.5, math=Figures(0.4, 200, 100)),
        variant("c", 1.0, math=Figures(0.7, 300, 100)),
    )
    math_, code = measured_frontiers(RouterConfig("f", variants, (), Chain((), Fixed(0.5))))
    assert (math_.title, math_.queries) == ("math", 100)
    assert [(p.name, p.lambda_, p.dominated) for p in math_.points] == [
        ("a", 0.0, False), ("b", 0.5, True), ("c", 1.0, False),
    ]  # fmt: skip
    first = math_.points[0].accuracy
    assert (first.mean, first.low, first.high) == (0.5, *wilson(0.5, 100))
    assert (code.title, code.queries, code.points[0].accuracy.low) == ("code", None, None)
    assert math_.points[0].tokens.low is None


REPORT = {
    "title": "t", "queries": 9,
    "points": [{"kind": "routed", "name": "n", "lambda": 0.3, "accuracy": {"mean": 0.5}, "tokens": {"mean": 7}}],
}  # fmt: skip


def test_a_report_is_shown_beside_the_manifest(world: World, tmp_path: Path) -> None:
    """The points of `frontier.json` reach the page as they are in the file, from the folder or the file."""
    (tmp_path / "frontier.json").write_text(json.dumps(REPORT))
    report = load_frontier(tmp_path)
    assert report == load_frontier(tmp_path / "frontier.json")
    client = paged(world, router_yml(("v-l000", world.upstream("v-l000"))), PageData([report]))
    (shown,) = client.get("/ui/data").json["frontiers"]
    assert FrontierFile.model_validate(shown) == report
    assert shown["points"][0]["lambda"] == 0.3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        ("<html>", "Invalid JSON"),
        ("{}", "title: Field required"),
        (json.dumps(REPORT | {"schema_version": 2}), "schema_version: "),
        (json.dumps(REPORT | {"extra": 1}), "extra: Extra inputs are not permitted"),
        (json.dumps(REPORT).replace("0.5", "NaN"), "accuracy"),
        (json.dumps(REPORT).replace("0.3", "1.5"), "points.0.lambda: "),
        (" " * (1 << 20) + json.dumps(REPORT), "larger than 1 MiB"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    """A missing, broken, foreign or huge file is one message that names the file and what writes one."""
    if content is not None:
        (tmp_path / "frontier.json").write_text(content)
    with pytest.raises(MisuseError) as error:
        load_frontier(tmp_path)
    assert str(tmp_path) in error.value.message
    assert said in error.value.message
    assert "dami eval --report DIR" in (error.value.hint or "")


def test_a_report_without_a_page_is_refused(tmp_path: Path) -> None:
    """`dami serve --no-ui --report` says that the two do not go together."""
    path = tmp_path / "router.yml"
    path.write_text('variants: [{id: a, lambda: 0}]\nbackends: [{variant: a, url: "http://x", protocol: openai}]\n')
    with pytest.raises(MisuseError, match="--no-ui"):
        serve.main([str(path), "--no-ui", "--report", str(tmp_path)], standalone_mode=False)


def test_numbers_that_json_lacks_are_left_out(world: World) -> None:
    """The state is valid JSON whatever a collector reports."""
    client = paged(world, router_yml(("v-l000", world.upstream("v-l000"))))

    class Odd:
        def collect(self) -> Any:
            from prometheus_client.core import GaugeMetricFamily

            family = GaugeMetricFamily("dami_odd", "x", labels=["which"])
            for value in (math.nan, math.inf, 1.0):
                family.add_metric([str(value)], value)
            yield family

    client.app.metrics.registry.register(Odd())
    assert client.get("/ui/now").json["metrics"]["dami_odd"] == [[{"which": "1.0"}, 1.0]]
