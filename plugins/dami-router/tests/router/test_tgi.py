"""TGI behind the proxy: its own routes, its traps, and who a server is."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fakes.contract import check, contract
from fakes.tgi import WORDS, native_event, refused
from fakes.upstream import Upstream
from fakes.world import World, router_yml

from dami_router.config.router_yml import parse_config
from dami_router.errors import FailureError
from dami_router.router import Router


@pytest.mark.parametrize("path", ["/generate", "/"])
def test_tgi_s_own_routes_go_to_tgi(world: World, path: str) -> None:
    """A native request reaches a TGI backend unchanged, and never one that speaks OpenAI's protocol only."""
    tgi, other = world.tgi("v-l000"), world.upstream("v-l050")
    client = world.router(("v-l000", tgi), ("v-l050", other), extra="estimator: {fixed: 0.5}")
    answer = client.post(path, b'{"inputs":"2+2", "parameters": {"seed":18446744073709551615}}')
    assert (answer.status, answer.variant) == (200, "v-l000")
    assert "".join(WORDS) in answer.body.decode()
    assert tgi.calls[0].body == b'{"inputs":"2+2", "parameters": {"seed":18446744073709551615}}'
    assert other.calls == []


def test_a_native_stream_passes_as_it_is(world: World) -> None:
    """/generate_stream comes through byte for byte; it ends without [DONE], as TGI's does."""
    client = world.router(("v-l000", world.tgi("v-l000")))
    answer = client.post("/generate_stream", {"inputs": "2+2", "parameters": {}})
    assert answer.body == b"".join(native_event(i) for i in range(3))


def test_a_native_stream_that_begins_with_an_error_falls_back(world: World) -> None:
    """TGI says HTTP 200 and then an error event: the next variant answers; the last failure is in TGI's form."""
    first, second = world.tgi("v-l000"), world.tgi("v-l100")
    client = world.router(("v-l000", first), ("v-l100", second), extra="estimator: {chain: [], fixed: 0.1}")
    first.fail_stream = True
    assert client.post("/generate_stream", {"inputs": "x"}).variant == "v-l100"
    second.fail_stream = True
    answer = client.post("/generate_stream", {"inputs": "x"})
    assert (answer.status, answer.json["error_type"]) == (502, "generation")
    assert "began with an error" in answer.json["error"]


@pytest.mark.parametrize("data", [{}, {"inputs": "x", "parameters": {"max_new_tokens": 0}}, {"inputs": 3}])
def test_what_tgi_refuses_is_refused_in_its_own_words(world: World, data: Any) -> None:
    """TGI's 422 is passed on unchanged, without a fallback."""
    tgi = world.tgi("v-l000")
    answer = world.router(("v-l000", tgi)).post("/generate", data)
    assert (answer.status, answer.json["error_type"], len(tgi.calls)) == (422, "validation", 1)


def test_a_body_that_is_no_json_is_422_in_tgi_s_form(world: World) -> None:
    """The proxy's own refusals on TGI's routes look like TGI's."""
    answer = world.router(("v-l000", world.tgi("v-l000"))).post("/generate", b"{")
    assert (answer.status, set(answer.json)) == (422, {"error", "error_type"})


def test_info_describes_the_family_with_the_smallest_limits(world: World) -> None:
    """/info has TGI's fields, the family's name, and limits that every server keeps; without TGI there is none."""
    small, large = world.tgi("v-l000"), world.tgi("v-l100")
    original = small.info()
    small.info = lambda: {**original, "max_input_tokens": 512}  # type: ignore[method-assign]
    info = world.router(("v-l000", small), ("v-l100", large)).get("/info").json
    assert (info["model_id"], info["max_input_tokens"], info["max_total_tokens"]) == ("dami", 512, 2048)
    assert set(original) <= set(info)
    assert world.router(("v-l000", world.upstream("v-l000"))).get("/info").status == 404


def identify(world: World, text: str) -> tuple[str, str]:
    """Probe the first backend of a configuration; return its health and what is wrong."""

    async def probe() -> tuple[str, str]:
        async with Router(parse_config(text, {})) as router:
            replica = router.fleet.replicas[0]
            return replica.health, replica.trouble

    return world.loop.run(probe())


@pytest.mark.parametrize(
    ("served", "health"),
    [("v-l000", "alive"), ("org/v-l000", "alive"), ("/data/v-l000", "alive"), ("v-l100", "wrong"), ("/data", "wrong")],
)
@pytest.mark.parametrize("kind", ["tgi", "upstream"])
def test_a_server_of_another_model_is_found_out(world: World, served: str, health: str, kind: str) -> None:
    """By /info on TGI and /v1/models elsewhere: the id, or a folder or repository of that name, is right."""
    server = getattr(world, kind)(served)
    found, trouble = identify(world, router_yml(("v-l000", server)))
    assert found == health
    assert (served in trouble) == (health == "wrong")


def test_a_configured_name_is_what_the_server_must_say(world: World) -> None:
    """`model` replaces the expected names, and `identity: off` asks for none."""
    server = world.tgi("/data")
    text = router_yml(("v-l000", server))
    assert identify(world, text.replace("protocol: tgi", "protocol: tgi, model: /data"))[0] == "alive"
    assert identify(world, text.replace("protocol: tgi", "protocol: tgi, model: /date"))[0] == "wrong"
    assert identify(world, text.replace("protocol: tgi", "protocol: tgi, identity: off"))[0] == "alive"


def test_an_alias_does_not_hide_another_model(world: World) -> None:
    """vLLM's `root` is the path behind a served name: an alias of the right name for the wrong folder is refused."""
    server = world.upstream("v-l000")
    server.models["data"][0]["root"] = "/models/v-l100"
    assert identify(world, router_yml(("v-l000", server)))[0] == "wrong"
    server.models["data"][0] |= {"id": "default", "root": "/models/v-l000"}
    assert identify(world, router_yml(("v-l000", server)))[0] == "alive"


@pytest.mark.parametrize("models", [None, {}, [], {"data": 3}, {"data": [None]}, "x", {"data": [{"id": 4}]}])
def test_nonsense_as_a_list_of_models_is_never_right(world: World, models: Any) -> None:
    """Whatever /v1/models says, a server that does not name the variant is not asked."""
    server: Upstream = world.upstream("v-l000")
    server.models = models
    assert identify(world, router_yml(("v-l000", server)))[0] in ("dead", "wrong")


def test_the_proxy_does_not_start_with_a_wrong_server_and_never_asks_one(world: World) -> None:
    """At start a wrong URL is an error that names it; a server that changes later is left out."""
    wrong, right = world.tgi("v-l100"), world.tgi("v-l100")
    config = parse_config(router_yml(("v-l000", wrong), ("v-l100", right)), {})

    async def start() -> None:
        async with Router(config) as router:
            router.require_usable()

    with pytest.raises(FailureError, match=r"v-l000 at http.*serves v-l100, expected v-l000"):
        world.loop.run(start())
    wrong.model_id = "v-l000"
    client = world.router(("v-l000", wrong), ("v-l100", right))
    wrong.model_id = "v-l100"
    world.loop.run(client.app.router.prober.probe_all())
    assert client.chat(reasoning_effort="none").variant == "v-l100"
    assert (client.chat(model="v-l000").status, wrong.calls) == (503, [])


def test_a_commit_that_differs_is_found_out(world: World) -> None:
    """Where the manifest knows the pushed commit and TGI says its own, they must agree."""
    from dataclasses import replace

    server = world.tgi("v-l000", sha="a" * 40)
    config = parse_config(router_yml(("v-l000", server)), {})

    async def health(revision: str) -> str:
        variant = replace(config.variants[0], revision=revision)
        async with Router(replace(config, variants=(variant,))) as router:
            return router.fleet.replicas[0].health

    assert [world.loop.run(health(sha * 40)) for sha in "ab"] == ["alive", "wrong"]


@pytest.mark.parametrize(("prefill", "template"), [(True, True), (False, True), (True, False)])
def test_capabilities_are_found_out(world: World, prefill: bool, template: bool) -> None:
    """Prompt log-probabilities that are empty with status 200 are noticed, and so is a missing chat template."""
    server = world.tgi("v-l000", prefill=prefill, template=template)

    async def explore() -> Any:
        async with Router(parse_config(router_yml(("v-l000", server)), {})) as router:
            await router.prober.explore(router.fleet.replicas[0])
            return router.fleet.replicas[0].identity

    assert dict(world.loop.run(explore()).capabilities) == {
        "log_probs": True, "prompt_log_probs": prefill, "top_n": True, "chat_template": template,
    }  # fmt: skip


def test_the_fake_tgi_speaks_as_its_own_description_says(world: World) -> None:
    """Replies of the test server, native, chat and /info, fit TGI's published schemas."""
    document = contract()
    client = world.router(("v-l000", world.tgi("v-l000")))
    parameters = {"details": True, "decoder_input_details": True, "top_n_tokens": 2}
    native = client.post("/generate", {"inputs": "x", "parameters": parameters}).json
    assert native["details"]["prefill"][0]["logprob"] is None
    schemas = document["components"]["schemas"]
    check(schemas["GenerateResponse"], native, document)
    check(schemas["ChatCompletion"], client.chat().json, document)
    check(schemas["Info"], client.get("/info").json, document)
    check(schemas["ErrorResponse"], client.post("/generate", {}).json, document)
    for line in client.post("/generate_stream", {"inputs": "x"}).body.splitlines():
        if line:
            check(schemas["StreamResponse"], json.loads(line[5:]), document)


def test_the_probe_s_requests_fit_the_description(world: World) -> None:
    """What the router itself asks of TGI is what TGI takes."""
    document = contract()
    tgi = world.tgi("v-l000")

    async def explore() -> None:
        async with Router(parse_config(router_yml(("v-l000", tgi)), {})) as router:
            await router.prober.explore(router.fleet.replicas[0])

    world.loop.run(asyncio.wait_for(explore(), 60))
    assert [call.path for call in tgi.calls] == ["/generate", "/v1/chat/completions"]
    assert [refused(call.path, call.json) for call in tgi.calls] == [None, None]
    check(document["components"]["schemas"]["GenerateRequest"], tgi.calls[0].json, document)
    check(document["components"]["schemas"]["ChatRequest"], tgi.calls[1].json, document)
