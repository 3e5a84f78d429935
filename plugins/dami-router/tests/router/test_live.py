"""Live servers, which answer at any λ: λ(q) reaches them exactly, and fixed variants stand beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes.live import FakeLive
from fakes.upstream import Upstream, plain, vanish
from fakes.world import Client, World
from hypothesis import given
from hypothesis import strategies as st

from dami_router.choosing.budget import Budget
from dami_router.config.router_yml import parse_config
from dami_router.errors import FailureError, RecipeError
from dami_router.manifest.family import Family
from dami_router.manifest.pair import EndpointSpec, PairSpec
from dami_router.manifest.published import open_family
from dami_router.messages.pinning import pin, pinned, shown
from dami_router.router import Router

LIVE = 'backends:\n  - {url: "http://h:1", protocol: live}\n'
ONE = "variants:\n  - {id: a, lambda: 0}"


def asked(server: Upstream) -> list[str]:
    return [call.json["model"] for call in server.calls]


def trouble(world: World, text: str) -> str:
    """Probe the first backend of a configuration; it must be found wrong, and keep the proxy from starting."""

    async def look() -> str:
        router = Router(parse_config(text, {}))
        async with router:
            with pytest.raises(FailureError, match="does not serve the variant"):
                router.require_usable()
            return router.fleet.replicas[0].trouble

    return world.loop.run(look())


def beside(world: World, live: FakeLive, extra: str = "") -> tuple[Client, Upstream, Upstream]:
    low, high = world.pair()
    return world.router(("v-l000", low), ("v-l100", high), ("live", live), extra=extra), low, high


@given(st.floats(0.0, 1.0))
def test_lambda_as_a_name_comes_back(lambda_: float) -> None:
    """`dami:λ` has six decimal places at most, and reads back as the same λ to the sixth."""
    found = pinned(pin(lambda_))
    assert found is not None
    assert abs(found - lambda_) <= 5.0000001e-7
    assert pin(found) == pin(lambda_)
    assert shown(lambda_) == "0" or not shown(lambda_).endswith((".", ".0"))


def test_a_live_server_alone_is_asked_for_exactly_lambda(world: World) -> None:
    """Estimates, pins and efforts reach it as `dami:λ`, and the reply names what would give it again."""
    live = world.live()
    client = world.router(("live", live), extra="estimator: {chain: [effort], fixed: 0.123456}")
    answer = client.chat(model="dami:0.37")
    assert (answer.headers["x-dami-lambda"], answer.variant) == ("0.37", "dami:0.37")
    assert answer.json["choices"][0]["message"]["content"] == "dami:0.37"
    assert [client.chat(**f).headers["x-dami-estimator"] for f in ({"reasoning_effort": "low"}, {})] == [
        "effort",
        "fixed",
    ]
    assert client.chat(model="dami:1").status == 200
    assert asked(live) == ["dami:0.37", "dami:0.3", "dami:0.123456", "dami:1"]
    assert [entry["id"] for entry in client.get("/v1/models").json["data"]][0::6] == ["dami"]


@pytest.mark.parametrize("rule", ["nearest", "at-least", "at-most", "dithered"])
def test_no_rule_moves_lambda_where_a_live_server_is_there(world: World, rule: str) -> None:
    """Rules choose among fixed variants; beside a live server λ(q) is exact, within the operator's limits."""
    live = world.live()
    client, low, high = beside(world, live, f"policy: {{choose: {rule}, lambda_max: 0.8}}")
    for model in ("dami:0.2", "dami:0.55", "dami:0.9"):
        client.chat(model=model)
    assert asked(live) == ["dami:0.2", "dami:0.55", "dami:0.8"]
    assert (low.calls, high.calls) == ([], [])


def test_a_variant_of_exactly_that_lambda_goes_first(world: World) -> None:
    """The same weights in a server of their own are preferred; a variant's id is that variant and no other."""
    live = world.live()
    client, low, high = beside(world, live)
    assert client.chat(model="dami:1").variant == "v-l100"
    assert client.chat(model="v-l000").variant == "v-l000"
    found = client.post("/v1/route", {"messages": [], "model": "dami:1"}).json
    assert found["order"] == ["v-l100", "dami:1", "v-l000"]
    assert (len(low.calls), len(high.calls), live.calls) == (1, 1, [])
    world.loop.run(high.stop())
    assert client.chat(model="dami:1").variant == "dami:1"
    assert client.chat(model="v-l100").status in (502, 503)
    assert asked(live) == ["dami:1"]


@pytest.mark.parametrize("script", [vanish(), plain(500, {}), plain(429, {}), plain(503, {})])
def test_a_failing_live_server_loses_nothing(world: World, script: object) -> None:
    """What it does not answer, the nearest variant answers; metrics count the fallback under `live`."""
    live = world.live(script)  # type: ignore[arg-type]
    client, _, high = beside(world, live)
    answers = [client.chat(str(i), model="dami:0.7") for i in range(8)]
    assert {(a.status, a.variant) for a in answers} == {(200, "v-l100")}
    assert client.metric('dami_fallbacks_total{answered="v-l100",chosen="live"}') >= 5
    assert len(high.calls) == 8


def test_replicas_of_a_live_server_stand_in_for_each_other(world: World) -> None:
    """One that dies is replaced by the other at the same λ before any fixed variant is asked."""
    first, second = world.live(vanish()), world.live()
    low = world.upstream("v-l000")
    client = world.router(("live", first), ("live", second), ("v-l000", low))
    answers = [client.chat(str(i), model="dami:0.25") for i in range(12)]
    assert {a.variant for a in answers} == {"dami:0.25"}
    assert low.calls == []
    assert set(asked(second)) == {"dami:0.25"}


def test_labels_stay_bounded(world: World) -> None:
    """However many λ are asked for, metrics know one label for all of them."""
    client = world.router(("live", world.live()))
    for i in range(30):
        client.chat(model=f"dami:0.{i:03d}")
    lines = client.get("/metrics").body.decode().splitlines()
    assert [line for line in lines if line.startswith("dami_requests_total")] == [
        'dami_requests_total{route="/v1/chat/completions",status="200",variant="live"} 30.0'
    ]
    assert not any("dami:0" in line for line in lines)


def test_tgi_s_own_routes_reach_it_with_lambda(world: World) -> None:
    """TGI's requests name no model; λ is written into them for a live server alone, and /info has its limits."""
    live = world.live()
    client = world.router(("live", live), extra="estimator: {chain: [], fixed: 0.4}")
    answer = client.post("/generate", {"inputs": "2+2="})
    assert (answer.json, answer.variant) == ({"generated_text": "dami:0.4"}, "dami:0.4")
    assert client.post("/generate", {"inputs": "x", "model": "dami:0.9"}).json == {"generated_text": "dami:0.9"}
    info = client.get("/info").json
    assert (info["max_total_tokens"], info["live"]["path"]) == (512, "uniform")


def test_a_mean_lambda_budget_bends_lambda_itself(world: World) -> None:
    """Everybody asks for λ=0.9; the window's mean stays at the budget, is used up, and pins are free."""
    live = world.live()
    client = world.router(
        ("live", live), extra="estimator: {fixed: 0.9}\npolicy: {budget: {mean_lambda: 0.4, window: 10}}"
    )
    for i in range(30):
        client.chat(str(i))
    lambdas = [float(model.removeprefix("dami:")) for model in asked(live)]
    assert all(sum(lambdas[max(0, i - 9) : i + 1]) / min(i + 1, 10) <= 0.4 + 1e-5 for i in range(30))
    assert sum(lambdas) / 30 == pytest.approx(0.4, abs=0.02)
    assert client.chat(model="dami:1").variant == "dami:1"
    bent = client.post("/v1/route", {"messages": []}).json
    assert bent["lambda"] < bent["evidence"]["wanted_lambda"] == 0.9


@given(st.floats(0, 1), st.integers(1, 8), st.lists(st.floats(0, 1), max_size=60))
def test_a_budget_over_any_lambda_is_kept(mean: float, window: int, wanted: list[float]) -> None:
    """After every request the window's mean is within the budget, and no λ is above what was wanted."""
    budget = Budget.of_lambda(mean, window, {})
    for lambda_ in wanted:
        allowed = budget.limited(lambda_)
        assert 0 <= allowed <= lambda_
        budget.spend("live", allowed)
        assert budget.spent <= mean + 1e-6


def test_a_conversation_never_falls(world: World) -> None:
    """With `sticky` a follow-up is answered at its conversation's last λ or above it, exactly."""
    live = world.live()
    client = world.router(("live", live), extra="policy: {sticky: true}")
    follow = [{"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "yes"), ("user", "and?"))]
    client.post("/v1/chat/completions", {"messages": follow[:1], "model": "dami:0.45"})
    client.post("/v1/chat/completions", {"messages": follow, "reasoning_effort": "none"})
    client.post("/v1/chat/completions", {"messages": follow, "model": "dami:0.8"})
    client.post("/v1/chat/completions", {"messages": follow, "reasoning_effort": "none"})
    assert asked(live) == ["dami:0.45", "dami:0.45", "dami:0.8", "dami:0.8"]


def test_thoughts_are_split_as_the_server_s_template_says(world: World) -> None:
    """`thinking: split` knows from /info that answers begin inside the block."""

    async def script(call: object, writer: object) -> None:
        await plain(data={"choices": [{"message": {"content": "a thought</think>4"}}]})(call, writer)  # type: ignore[arg-type]

    client = world.router(("live", world.live(script, opens_think_from=0.5)), extra="thinking: split")
    message = client.chat().json["choices"][0]["message"]
    assert message == {"content": "4", "reasoning_content": "a thought", "reasoning": "a thought"}


def test_a_server_of_another_pair_is_refused(world: World) -> None:
    """Where router.yml names the endpoints, a live server of others is never asked."""
    live = world.live()
    text = f'backends:\n  - {{url: "{live.url}", protocol: live, instruct: x/Instruct, thinking: x/Other}}\n'
    assert trouble(world, text) == "its thinking endpoint is org/Thinking, expected x/Other"
    right = text.replace("x/Other", "/models/Thinking/")
    assert world.proxy(right).chat().status == 200
    assert world.proxy(text.replace("live,", "live, identity: off,")).chat().status == 200


def test_a_server_that_is_no_live_server_is_down(world: World) -> None:
    """An OpenAI-compatible server in its place is not taken for one."""
    client = world.proxy(LIVE.replace("http://h:1", world.upstream("x").url))
    assert client.get("/health").status == 503
    assert "is this `dami live`?" in client.app.router.fleet.replicas[0].trouble


NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=5)


@given(NAMES, NAMES, st.sampled_from(["uniform", "late(0.5)"]))
def test_pairs_are_told_apart_by_all_that_both_sides_know(name: str, other: str, path: str) -> None:
    """Names, commits, files and path each make a difference; what one side does not know makes none."""
    pair = PairSpec(EndpointSpec(f"a/{name}", "1" * 40, {"f": "x"}), EndpointSpec(name), path)
    told = {"instruct": {"name": name}, "thinking": {"name": f"/b/{name}/"}, "path": path}
    assert pair.difference(told) is None
    assert pair.difference({**told, "path": "power(2)"}) is not None
    assert (pair.difference({**told, "thinking": {"name": other}}) is None) == (name == other)
    assert "commit" in str(pair.difference({**told, "instruct": {"name": name, "commit": "2" * 40}}))
    assert "differs from" in str(pair.difference({**told, "instruct": {"name": name, "files": {"f": "y"}}}))
    assert pair.difference({**told, "instruct": {"name": name, "files": {"f": "x", "g": "y"}}}) is None
    assert pair.difference({"instruct": None}) is not None


def test_a_family_s_variants_need_no_servers_of_their_own(world: World, tmp_path: Path) -> None:
    """With a manifest, a variant's id is its λ to the live server, whose pair and path must be the family's."""
    manifest(tmp_path)
    live = world.live()
    text = f'family: "{tmp_path}"\nbackends:\n  - {{url: "{live.url}", protocol: live}}\n'
    client = world.proxy(text)
    assert client.chat(model="Fam-l060").variant == "dami:0.6"
    assert [e["id"] for e in client.get("/v1/models").json["data"]][0::6] == ["dami", "Fam-l060"]
    live.described["path"] = "late(0.5)"
    assert trouble(world, text) == "spreads λ by the path late(0.5), expected uniform"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LIVE.replace("protocol", "variant: a, protocol"), "leave `variant` out"),
        (LIVE.replace("live}", "live, model: x}"), "backends[0].model: unknown key"),
        (LIVE.replace("live}", "live, instruct: x}"), "thinking: is missing"),
        (LIVE + LIVE.splitlines()[1], "given twice"),
        (LIVE + "policy: {budget: {mean_tokens: 9}}", "no measured tokens"),
        (LIVE + "variants:\n  - {id: live, lambda: 0}", "stands for live servers"),
        (LIVE + '  - {variant: a, url: "http://h:2", protocol: tgi}', "either `family` or a list of `variants`"),
        (
            LIVE + '  - {variant: a, url: "http://h:1", protocol: tgi}\nvariants:\n  - {id: a, lambda: 0}',
            "two variants",
        ),
    ],
)
def test_mistakes_about_live_servers_are_explained(text: str, says: str) -> None:
    """Each is one RecipeError that says what to do."""
    with pytest.raises(RecipeError) as caught:
        parse_config(text, {})
    assert says in str(caught.value)


def manifest(folder: Path) -> Family:
    """Write the manifest of a family of one variant."""
    digest = "0" * 64
    side = {"architecture": "Q", "parameters": 1, "dtype": "BF16", "files": {"model.safetensors": digest}}
    variant = {
        "id": "Fam-l060", "lambda": 0.6, "folder": "Fam-l060", "files": {"model.safetensors": digest},
        "resolved": [{"stack": "", "first": None, "last": None, "module": "m", "lambda": 0.6, "tensors": 1}],
        "chat_template": {"source": "instruct", "sha256": None, "opens_think": False},
        "sampling": {"source": None, "values": {}},
    }  # fmt: skip
    data = {
        "schema_version": 1, "name": "Fam", "created_with": {"tool": "t", "version": "1"}, "path": "uniform",
        "recipe": "x", "variants": [variant],
        "endpoints": {"instruct": {"source": "org/Instruct", **side}, "thinking": {"source": "org/Thinking", **side}},
    }  # fmt: skip
    (folder / "dami_family.json").write_text(json.dumps(data))
    return open_family(folder)
