"""A conversation keeps its replica and, while tools are called, its λ; and every answer says what decided on it."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
from dataclasses import asdict
from typing import Any

import pytest
from fakes.upstream import Call, Upstream, chat, plain, send
from fakes.waiting import happened, until
from fakes.world import Client, World

from dami_router.config.router_yml import parse_config
from dami_router.errors import RecipeError
from dami_router.messages.request import read_request
from dami_router.router import Router


class Caching(Upstream):
    """A server that counts its prefix cache's hits: the messages of a chat that it has answered before."""

    def __init__(self, name: str) -> None:
        super().__init__(self._chat, models={"object": "list", "data": [{"id": name, "object": "model"}]})
        self.cached: set[str] = set()
        self.asked = self.hits = 0

    async def _chat(self, call: Call, writer: Any) -> None:
        said = [repr(message) for message in call.json["messages"]]
        prefixes = ["".join(said[: end + 1]) for end in range(len(said))]
        self.asked += len(prefixes)
        self.hits += sum(prefix in self.cached for prefix in prefixes)
        self.cached.update(prefixes)
        await send(writer, 200, chat("4"))


def talk(client: Client, conversations: int, turns: int) -> None:
    """Hold several conversations at a time, a turn of each after the other."""
    said: list[list[dict[str, str]]] = [[{"role": "system", "content": "Be brief."}] for _ in range(conversations)]
    for turn in range(turns):
        for number, messages in enumerate(said):
            messages.append({"role": "user", "content": f"{number}: question {turn}"})
            answer = client.post("/v1/chat/completions", {"model": "dami", "messages": messages})
            messages.append(answer.json["choices"][0]["message"])


def caching(world: World, extra: str = "") -> tuple[Client, list[Caching]]:
    servers = [world.start(Caching("v-l000")) for _ in range(3)]
    return world.router(*(("v-l000", server) for server in servers), extra=extra), servers


def test_a_conversation_keeps_its_replica_and_its_cached_prefix(world: World) -> None:
    """Of 40 conversations of 3 turns on 3 replicas, every earlier message is a hit; without affinity many are not."""
    client, servers = caching(world)
    talk(client, 40, 3)
    # A turn brings its system message (cached by an earlier conversation, but for the first), and 2 new ones.
    earlier = 40 * sum(2 * turn for turn in range(3))
    hits = sum(server.hits for server in servers) - sum(s.asked > 0 for s in servers)
    assert hits >= earlier
    assert all(server.calls for server in servers)
    client, without = caching(world, "affinity: {enabled: false}")
    talk(client, 40, 3)
    assert sum(server.hits for server in without) < sum(server.hits for server in servers)


def test_a_session_s_header_decides_and_is_passed_on(world: World) -> None:
    """Different questions of one session go to one replica, with the header; other headers stay behind."""
    client, servers = caching(world, "affinity: {headers: [X-Session-Id, x-user-id]}")
    for number in range(9):
        said = [{"role": "user", "content": f"{number}"}]
        client.post("/v1/chat/completions", {"messages": said}, x_user_id="u-7", x_other="secret")
    assert sorted(len(server.calls) for server in servers) == [0, 0, 9]
    calls = [call for server in servers for call in server.calls]
    assert all(call.headers["x-user-id"] == "u-7" and "x-other" not in call.headers for call in calls)


def test_an_overloaded_replica_s_conversation_goes_to_another_one(world: World) -> None:
    """Of four requests of one conversation at a time, the third would be two more than the idle replica has."""
    gate = threading.Event()

    async def slow(call: Call, writer: Any) -> None:
        if call.path == "/v1/chat/completions":
            await happened(gate.is_set)
        await send(writer, 200, chat("4"))

    servers = [world.upstream("v-l000", slow) for _ in range(2)]
    client = world.router(*(("v-l000", server) for server in servers))
    threads = [threading.Thread(target=client.chat) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: sum(server.active for server in servers) == 4)
    assert sorted(server.active for server in servers) == [1, 3]
    gate.set()
    for thread in threads:
        thread.join(60)


def test_nothing_is_hashed_for_a_variant_with_one_replica(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ordinary path pays nothing for affinity."""
    client = world.router(("v-l000", world.upstream("v-l000")))
    monkeypatch.setattr(type(client.app.router), "_affinity", lambda *_: pytest.fail("hashed"))
    assert client.chat().status == 200


@pytest.mark.parametrize("name", ["Authorization", "x-api-key", "cookie", "x-dami-variant", "a b", ""])
def test_a_header_that_must_not_be_passed_on_cannot_name_a_session(name: str) -> None:
    """Keys, cookies and the connection's own headers stay with the router."""
    text = "variants: [{id: a, lambda: 0}]\nbackends: [{variant: a, url: 'http://h', protocol: openai}]\n"
    with pytest.raises(RecipeError, match=r"affinity\.headers"):
        parse_config(f"{text}affinity: {{headers: ['{name}']}}")


CALLS = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]}
LOOPS = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "q"}, CALLS, {"role": "tool", "content": "r"}]}),
    ("/v1/messages", {"messages": [
        {"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "tool_use", "id": "1"}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "r"}]},
    ]}),
    ("/v1/responses", {"input": [
        {"role": "user", "content": "q"}, {"type": "function_call", "call_id": "1"},
        {"type": "function_call_output", "call_id": "1", "output": "r"},
    ]}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), LOOPS)
def test_tools_results_are_recognised_in_every_api(path: str, body: dict[str, Any]) -> None:
    """The question stays the user's, the draw and the conversation those of the request before the tools."""
    shape: Any = "anthropic" if path == "/v1/messages" else "openai"
    key = "input" if path == "/v1/responses" else "messages"
    loop = read_request(path, shape, json.dumps(body).encode())
    first = read_request(path, shape, json.dumps({key: body[key][:1]}).encode())
    assert (loop.tool_loop, loop.follow_up, loop.text) == (True, True, "q")
    assert (first.tool_loop, first.follow_up) == (False, False)
    assert (loop.draw, loop.conversation, loop.beginning) == (first.draw, first.conversation, first.conversation)


def test_a_tool_loop_stays_at_its_lambda_through_the_proxy(world: World) -> None:
    """Started at λ = 1, it goes on there though its next step asks for less, and the reply says why."""
    low, high = world.pair()
    client = world.router(("v-l000", low), ("v-l100", high), extra="policy: {sticky: true}")
    question = {"role": "user", "content": "q"}
    results = [question, CALLS, {"role": "tool", "tool_call_id": "1", "content": "r"}]
    post = client.post
    started = post("/v1/chat/completions", {"messages": [question], "reasoning_effort": "high"})
    assert (started.variant, started.headers["x-dami-cause"]) == ("v-l100", "estimator")
    step = post("/v1/chat/completions", {"messages": results, "reasoning_effort": "none"})
    assert (step.variant, step.headers["x-dami-cause"]) == ("v-l100", "conversation")
    lower = [{"role": "user", "content": "another"}]
    post("/v1/chat/completions", {"messages": lower, "reasoning_effort": "none"})
    step = post("/v1/chat/completions", {"messages": [*lower, *results[1:]], "reasoning_effort": "high"})
    assert (step.variant, step.headers["x-dami-cause"]) == ("v-l000", "conversation")


def test_every_answer_names_its_cause(world: World) -> None:
    """Estimated, limited by the policy, pinned, and answered by a fallback; `/v1/route` says the same."""
    low, high = world.pair()
    client = world.router(("v-l000", low), ("v-l100", high), extra="policy: {lambda_max: 0.4}")
    body = {"model": "dami", "messages": [{"role": "user", "content": "q"}]}

    def cause(**more: Any) -> tuple[str, str]:
        data = {**body, **more}
        said = client.post("/v1/chat/completions", data).headers["x-dami-cause"]
        return said, client.post("/v1/route", data).json["cause"]

    assert cause(reasoning_effort="low") == ("estimator", "estimator")
    assert cause(reasoning_effort="high") == ("policy", "policy")
    assert cause(model="v-l100") == ("pinned", "pinned")
    assert cause(model="dami:0.3") == ("pinned", "pinned")
    low.script = plain(500)
    assert cause(reasoning_effort="low") == ("fallback", "estimator")
    world.loop.run(low.stop())
    world.loop.run(client.app.router.prober.probe_all())
    assert cause(reasoning_effort="low") == ("fallback", "fallback")


def test_a_variant_that_returns_while_others_fail_still_answers(world: World) -> None:
    """It was down when the request was decided on: the request is not lost once all that were up have failed."""
    low, high = world.pair()
    client = world.router(("v-l000", low), ("v-l100", high))
    back = client.app.router.fleet.replicas[1]

    async def fail(call: Call, writer: Any) -> None:
        back.health = "alive"
        await send(writer, 503, {})

    back.health = "dead"
    low.script = fail
    answer = client.chat(model="dami:0")
    assert (answer.status, answer.variant, answer.headers["x-dami-attempts"]) == (200, "v-l100", "2")


def test_effort_presets_are_models(world: World) -> None:
    """`/v1/models` lists one for each λ of the estimator `effort`, and a request for one is as with its effort."""
    low, high = world.pair()
    client = world.router(("v-l000", low), ("v-l100", high), extra="aliases: {quick: 'dami:none'}")
    listed = [entry["id"] for entry in client.get("/v1/models").json["data"]]
    assert listed[:6] == ["dami", "dami:none", "dami:minimal", "dami:low", "dami:medium", "dami:high"]
    for model, variant in (
        ("dami:none", "v-l000"),
        ("dami:high", "v-l100"),
        ("dami:max", "v-l100"),
        ("quick", "v-l000"),
    ):
        answer = client.chat(model=model, reasoning_effort="low")
        assert (answer.variant, answer.headers["x-dami-estimator"]) == (variant, "effort")
    assert client.get("/v1/models/dami:max").status == 200
    little = client.chat(model="dami:little")
    assert little.status == 404
    assert "as in `dami:0.37`, or an effort: `dami:none`" in little.json["error"]["message"]


def test_without_an_estimator_of_effort_there_are_no_presets(world: World) -> None:
    """Models that would change nothing are neither listed nor known."""
    client = world.router(("v-l000", world.upstream("v-l000")), extra="estimator: {chain: []}")
    assert [entry["id"] for entry in client.get("/v1/models").json["data"]] == ["dami", "v-l000"]
    low = client.chat(model="dami:low")
    assert low.status == 404
    assert low.json["error"]["message"] == "no model `dami:low`; nothing here turns an effort into λ"


def test_a_decision_is_plain_data() -> None:
    """What `Router.route` returns can be pickled, copied as a dict and written as JSON."""
    text = "variants: [{id: v, lambda: 0.3}]\nbackends: [{variant: v, url: 'http://127.0.0.1:1', protocol: openai}]"
    decision = asyncio.run(Router(parse_config(text, {})).route("2+2?"))
    assert pickle.loads(pickle.dumps(decision)) == decision
    assert json.loads(json.dumps(asdict(decision)))["evidence"] == {}
