"""A live server whose engine is vLLM: λ and a salt in every request, and everything else as for `dami live`."""

from __future__ import annotations

import asyncio
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from fakes.world import Client, World
from hypothesis import given
from hypothesis import strategies as st

from dami_router.config.router_yml import parse_config
from dami_router.messages.request import BadRequestError, read_request
from dami_router.router import Router

pytest.importorskip("torch", reason="the lab's models need torch")
from fakes.lab import encode, templated
from fakes.vllm_pair import Asked, LabVllmPair

if TYPE_CHECKING:
    from fakes.lab import LabModel

CHAIN = "3+7-2>5="
SAID = [{"role": "user", "content": CHAIN}]
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3))


def behind(world: World, server: LabVllmPair, extra: str = "estimator: {chain: [], fixed: 0.4}") -> Client:
    return world.router(("live", server), extra=extra)


def ask(client: Client, **fields: Any) -> Any:
    body = {"messages": SAID, "max_tokens": 8, "temperature": 0, **fields}
    return client.post("/v1/chat/completions", body)


def test_lambda_and_salt_reach_vllm_with_everything_else_untouched(world: World) -> None:
    """λ joins the client's arguments in `vllm_xargs`, and is the salt; the model has vLLM's own name."""
    server = world.start(LabVllmPair())
    client = behind(world, server)
    answer = ask(client, model="dami:0.37", seed=7, vllm_xargs={"session_id": "a"})
    assert (answer.status, answer.variant, answer.headers["x-dami-lambda"]) == (200, "dami:0.37", "0.37")
    sent = server.calls[-1].json
    assert sent == {
        "model": "lab-dami", "messages": SAID, "max_tokens": 8, "temperature": 0, "seed": 7,
        "vllm_xargs": {"session_id": "a", "lambda": 0.37}, "cache_salt": "dami:0.37",
    }  # fmt: skip
    ask(client)
    ask(client, model="dami:1")
    ask(client, model="dami:0")
    assert [asked.lambda_ for asked in server.asked] == [0.37, 0.4, 1.0, 0.0]


def test_no_lambda_is_answered_from_another_one_s_cache(world: World, thinking: LabModel, instruct: LabModel) -> None:
    """The same prompt at two λ, twice, also with a client's own salt: each answer is its λ's own."""
    server = world.start(LabVllmPair())
    client = behind(world, server)
    own = {x: m.write(encode(templated(SAID)), 8).text for x, m in ((0, instruct), (1, thinking))}
    assert own[0] != own[1]
    for salt in ({}, {"cache_salt": "mine"}, {"cache_salt": "dami:1"}, {"cache_salt": "a/b@c" * 60}):
        for _ in range(2):
            for lambda_ in (0, 1):
                answer = ask(client, model=f"dami:{lambda_}", **salt)
                assert answer.json["choices"][0]["message"]["content"] == own[lambda_]
    salts = {asked.salt for asked in server.asked}
    assert len(salts) == 8
    assert not any("mine" in str(salt) for salt in salts)


def test_what_vllm_refuses_is_refused(world: World) -> None:
    """λ in `vllm_xargs` is the router's to write; other mistakes are left to vLLM, whose words the client gets."""
    server = world.start(LabVllmPair())
    client = behind(world, server)
    answer = ask(client, vllm_xargs={"lambda": 0.9})
    assert (answer.status, server.calls) == (400, [])
    assert "dami:0.37" in answer.json["error"]["message"]
    for fields, words in (
        ({"vllm_xargs": [0.9]}, "valid dictionary"), ({"cache_salt": ""}, "non-empty"),
        ({"cache_salt": 5}, "non-empty"),
    ):  # fmt: skip
        answer = ask(client, **fields)
        assert (answer.status, words in answer.json["error"]["message"]) == (400, True)
    assert server.asked == []


def test_discrepancy_comes_from_both_ends_of_the_one_server(
    world: World, instruct: LabModel, thinking: LabModel
) -> None:
    """D is mean(log p_I − log p_T): probe at λ=0, one prefill at λ=1, both salted, though one server gives both."""
    server = world.start(LabVllmPair())
    chain = "estimator: {chain: [{confidence: {form: discrepancy, timeout: 60}}], fixed: 0.25}"
    found = behind(world, server, chain).post("/v1/route", {"messages": SAID}).json
    prompt = encode(templated(SAID))
    own = instruct.write(prompt, 16)
    others = thinking.of_prompt(prompt + encode(own.text))[len(prompt) :]
    terms = [p - (q or 0.0) for p, q in zip(own.logprobs, others, strict=False)]
    assert found["estimator"] == "confidence"
    assert found["evidence"]["discrepancy"] == pytest.approx(math.fsum(terms) / len(others), abs=1e-5)
    generated = [asked for asked in server.asked if asked.path != "/tokenize"]
    assert generated == [
        Asked("/v1/chat/completions", 0.0, "dami:0"), Asked("/v1/completions", 1.0, "dami:1"),
    ]  # fmt: skip


def test_it_has_vllm_s_routes_and_not_tgi_s(world: World) -> None:
    """Responses and Messages go to it with λ; `/generate` has no server. `dami live`'s own engine is the reverse."""
    server = world.start(LabVllmPair())
    client = behind(world, server)
    for path, body in (("/v1/responses", {"input": CHAIN}), ("/v1/messages", {"messages": SAID, "max_tokens": 8})):
        answer = client.post(path, {"model": "dami:0.25", **body})
        assert (answer.status, answer.json["choices"][0]["message"]["content"]) == (200, "λ=0.25")
    refused = client.post("/generate", {"inputs": CHAIN})
    assert (refused.status, "protocol `tgi` or `live`" in refused.body.decode()) == (404, True)
    assert [asked.path for asked in server.asked] == ["/v1/responses", "/v1/messages"]
    builtin = world.router(("live", world.live()))
    assert builtin.post("/generate", {"inputs": "x"}).status == 200
    answer = builtin.post("/v1/responses", {"input": "x"})
    assert (answer.status, "`live` with the engine vLLM" in answer.json["error"]["message"]) == (404, True)


def test_a_router_in_front_of_a_router_pins_by_name(world: World) -> None:
    """/info of a router is not vLLM's own: one in front of it sends `dami:λ`, and λ reaches vLLM all the same."""
    server = world.start(LabVllmPair())
    inner = behind(world, server)
    assert inner.get("/info").json["engine"] == "router"
    outer = world.proxy(f'backends: [{{url: "{inner.url}", protocol: live}}]')
    assert ask(outer, model="dami:0.62").status == 200
    assert server.asked == [Asked("/v1/chat/completions", 0.62, "dami:0.62")]


def test_both_engines_behind_one_router(world: World) -> None:
    """Each route goes to the servers that have it, and each server gets λ in its own way."""
    own, vllm = world.live(), world.start(LabVllmPair())
    client = world.router(("live", own), ("live", vllm), extra="estimator: {chain: [], fixed: 0.4}")
    for _ in range(4):
        assert client.post("/generate", {"inputs": "x"}).json == {"generated_text": "dami:0.4"}
        assert client.post("/v1/responses", {"input": CHAIN}).status == 200
    assert ([c.path for c in own.calls], [c.path for c in vllm.calls]) == (["/generate"] * 4, ["/v1/responses"] * 4)
    world.loop.run(vllm.stop())
    assert client.chat(model="dami:0.2").json["choices"][0]["message"]["content"] == "dami:0.2"


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ({"thinking": {"name": "lab/other"}}, "thinking endpoint is lab/other"),
        ({"path": "late(0.5)", "mode": "request"}, None),
        ({"mode": "uniform"}, "one λ at a time"),
    ],
)
def test_both_checkpoints_and_the_mode_are_compared(world: World, described: dict[str, Any], words: str | None) -> None:
    """Another checkpoint than the entry names is refused, and one λ for everybody; any path is taken."""
    server = world.start(LabVllmPair(described=described))
    entry = f'backends: [{{url: "{server.url}", protocol: live, instruct: lab/instruct, thinking: lab/thinking}}]'

    async def look() -> str:
        async with Router(parse_config(entry, {})) as router:
            return router.fleet.replicas[0].trouble

    assert (words or "") in world.loop.run(look())
    assert bool(words) == bool(world.loop.run(look()))


def test_a_hung_server_is_asked_for_one_token_with_lambda_and_salt(world: World) -> None:
    """The router's own question to a doubtful server carries λ and its salt, so that it caches nothing for others."""
    server = world.start(LabVllmPair())
    client = behind(world, server)
    watchdog = client.app.router.watchdog
    assert watchdog is not None
    world.loop.run(asyncio.wait_for(watchdog.ask(client.app.router.fleet.replicas[0]), 60))
    assert server.asked == [Asked("/v1/completions", 0.0, "dami:0")]


@given(
    st.dictionaries(st.text(max_size=4) | st.sampled_from(["vllm_xargs", "cache_salt", "model"]), JSON, max_size=5),
    st.booleans(), st.sampled_from([None, 1]),
)  # fmt: skip
def test_members_are_replaced_or_added_and_nothing_else_changes(
    members: dict[str, Any], escape: bool, indent: int | None
) -> None:
    """Whatever the body holds, it is afterwards what it was, with these members."""
    if not isinstance(members.get("model"), str | None):
        del members["model"]
    body = json.dumps(members, ensure_ascii=escape, indent=indent).encode("utf-8", "replace")
    request = read_request("/v1/completions", "openai", body)
    assert request.members("vllm_xargs", "cache_salt") == {
        k: v for k, v in json.loads(body).items() if k in ("vllm_xargs", "cache_salt")
    }
    told = {"model": "m", "vllm_xargs": {"lambda": 0.5}, "cache_salt": "s"}
    assert json.loads(request.body_with(told)) == {**json.loads(body), **told}
    assert json.loads(request.body_with({"cache_salt": "s"})) == {**json.loads(body), "cache_salt": "s"}


def test_members_given_twice_or_escaped_are_all_replaced() -> None:
    """No reading of a doubled or escaped key reaches the server with another λ or salt."""
    body = b'{"cache_salt":"a","x":[1.50],"cache_salt":"b","vllm_\\u0078args":{"a":"\xc3\xa9"}}'
    request = read_request("/v1/completions", "openai", body)
    assert request.members("vllm_xargs", "cache_salt") == {"cache_salt": "b", "vllm_xargs": {"a": "é"}}
    made = request.body_with({"vllm_xargs": {"lambda": 1}, "cache_salt": "s"})
    assert made == b'{"cache_salt":"s","x":[1.50],"cache_salt":"s","vllm_\\u0078args":{"lambda": 1}}'
    with pytest.raises(BadRequestError, match="`lambda`"):
        read_request("/v1/completions", "openai", b'{"vllm_xargs":{"lambda":0.1}}')
