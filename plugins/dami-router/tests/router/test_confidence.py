"""The estimator `confidence` over HTTP, on servers that speak TGI's and vLLM's routes with the lab's real models."""

from __future__ import annotations

import asyncio
import json
import math
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fakes.contract import check, contract
from fakes.tgi import refused
from fakes.upstream import Upstream, send
from fakes.world import Client, World

from dami_router.rollouts.gathering import grid_of

pytest.importorskip("torch", reason="the lab's models need torch")
from fakes.lab import LabTgi, LabVllm, encode, mean_exp, templated
from fakes.waiting import happened

from dami_router.backends.logprobs import CLOSED
from dami_router.estimators.calibrated import CalibratedMap
from dami_router.estimators.quantile import QuantileMap

if TYPE_CHECKING:
    from fakes.lab import LabModel

CHAINS = ["3+7-2>5=", "1+1=", "4<2<9<1<8<3=", "9-3+2-7+5-1+4>6="]
CHAIN = CHAINS[0]


@dataclass
class Pair:
    """Two servers of the lab pair, and a proxy in front."""

    instruct: Any
    thinking: Any
    client: Client

    def route(self, text: str = CHAIN) -> dict[str, Any]:
        answer = self.client.post("/v1/route", {"messages": [{"role": "user", "content": text}]})
        assert answer.status == 200
        return dict(answer.json)

    def evidence(self, text: str = CHAIN) -> dict[str, Any]:
        """Return the evidence of a decision that `confidence` made."""
        decision = self.route(text)
        assert decision["estimator"] == "confidence", decision
        return dict(decision["evidence"])


class Pairs:
    """Makes pairs of one protocol."""

    def __init__(self, world: World, instruct: LabModel, thinking: LabModel) -> None:
        self._world, self.models = world, (instruct, thinking)

    def make(
        self, protocol: str, settings: str = "form: auto", *, low: dict[str, Any] | None = None,
        high: dict[str, Any] | None = None, extra: str = "",
    ) -> Pair:  # fmt: skip
        if "timeout:" not in settings:
            settings += ", timeout: 60"
        kind = LabTgi if protocol == "tgi" else LabVllm
        servers = [
            self._world.start(kind(name, model, **(habits or {})))
            for name, model, habits in zip(("v-l000", "v-l100"), self.models, (low, high), strict=True)
        ]
        opens = ["", ", opens_think: true" if servers[1].habits.tail else ""]
        lines = ["variants:", *(f"  - {{id: v-l{x}00, lambda: {x}{o}}}" for x, o in zip((0, 1), opens, strict=True))]
        lines += ["backends:"]
        lines += [
            f'  - {{variant: v-l{x}00, url: "{s.url}", protocol: {protocol}}}'
            for x, s in zip((0, 1), servers, strict=True)
        ]
        chain = f"estimator: {{chain: [{{confidence: {{{settings}}}}}], fixed: 0.25}}"
        client = self._world.proxy("\n".join([*lines, chain, "retries: {backoff: 0.001}", extra]))
        return Pair(*servers, client)


@pytest.fixture
def pairs(world: World, instruct: LabModel, thinking: LabModel) -> Pairs:
    return Pairs(world, instruct, thinking)


def both(function: Any) -> Any:
    """Run a test on TGI's routes and on vLLM's."""
    return pytest.mark.parametrize("protocol", ["tgi", "openai"])(function)


def posts(server: Upstream) -> list[str]:
    """Return the paths of a server's calls."""
    return [call.path for call in server.calls]


@both
def test_confidence_is_the_model_s_own(pairs: Pairs, protocol: str) -> None:
    """c_I from served log-probabilities equals exp of the mean log-probability that the model itself gives."""
    pair = pairs.make(protocol, "form: instruct")
    for chain in CHAINS:
        own = pairs.models[0].write(encode(templated([{"role": "user", "content": chain}])), 16)
        found = pair.evidence(chain)
        assert "<think>" not in own.text
        assert found["confidence"] == pytest.approx(mean_exp(own.logprobs), abs=1e-6)
        assert (found["form"], found["tokens"], found["score"]) == ("instruct", len(own.ids), found["confidence"])
    assert posts(pair.thinking) == []


@both
def test_discrepancy_equals_direct_computation(pairs: Pairs, protocol: str) -> None:
    """D is mean(log p_I − log p_T) over Instruct's own answer, the Thinking server asked for one prefill."""
    pair = pairs.make(protocol, "form: discrepancy")
    for chain in CHAINS:
        prompt = encode(templated([{"role": "user", "content": chain}]))
        own = pairs.models[0].write(prompt, 16)
        answer = encode(own.text)
        others = pairs.models[1].of_prompt(prompt + answer)[len(prompt) :]
        expected = math.fsum(p - (q or 0.0) for p, q in zip(own.logprobs, others, strict=False)) / len(answer)
        found = pair.evidence(chain)
        assert found["discrepancy"] == pytest.approx(expected, abs=1e-5)
        assert found["score"] == pytest.approx(math.exp(-expected), rel=1e-4)
    assert sum(path in ("/generate", "/v1/completions") for path in posts(pair.thinking)) == len(CHAINS)


@both
def test_entropy_ratio_is_that_of_the_two_models(pairs: Pairs, protocol: str) -> None:
    """r = e^{−H_T}/(e^{−H_I}+e^{−H_T}) from two probes; H over five tokens and the rest, so never above the model's."""
    pair = pairs.make(protocol, "form: entropy, tokens: 3")
    prompt = encode(templated([{"role": "user", "content": CHAIN}]))
    entropies = []
    for model in pairs.models:
        rows = [[math.exp(p) for _, p in row] for row in model.write(prompt, 3).all]
        five = [[*row[:5], max(1 - math.fsum(row[:5]), 0.0)] for row in rows]
        entropies.append(math.fsum(-p * math.log(p) for row in five for p in row if p > 0) / len(rows))
    found = pair.evidence()
    assert found["entropy_instruct"] == pytest.approx(entropies[0], abs=1e-4)
    assert found["entropy_thinking"] == pytest.approx(entropies[1], abs=1e-4)
    weights = [math.exp(-h) for h in entropies]
    assert found["entropy_ratio"] == pytest.approx(weights[1] / sum(weights), abs=1e-4)


@both
def test_auto_degrades_as_declared(pairs: Pairs, protocol: str) -> None:
    """auto: discrepancy; entropy where prompt log-probabilities are off; confidence alone without likeliest tokens."""
    assert pairs.make(protocol).evidence()["form"] == "discrepancy"
    off = {"prompt_log_probs": False}
    without = pairs.make(protocol, high=off)
    assert without.evidence()["form"] == "entropy"
    asked = len(posts(without.thinking))
    assert without.evidence(CHAINS[1])["form"] == "entropy"
    assert posts(without.thinking)[asked:] == ["/v1/chat/completions"]  # what it lacks is remembered
    alone = pairs.make(protocol, low={"top_n": False}, high=off)
    assert alone.evidence()["form"] == "instruct"


def test_without_any_log_probabilities_the_next_estimator_is_asked(pairs: Pairs) -> None:
    """A server that gives none has nothing to say, and after the first time is not asked again."""
    pair = pairs.make("openai", low={"log_probs": False})
    assert pair.route()["estimator"] == "fixed"
    asked = len(posts(pair.instruct))
    assert (pair.route(CHAINS[1])["lambda"], len(posts(pair.instruct))) == (0.25, asked)


@both
def test_a_named_form_is_not_replaced(pairs: Pairs, protocol: str) -> None:
    """form: discrepancy on a server without prompt log-probabilities leaves the decision to the next link."""
    assert pairs.make(protocol, "form: discrepancy", high={"prompt_log_probs": False}).route()["estimator"] == "fixed"


@both
def test_a_thinking_template_s_block_is_closed_before_scoring(pairs: Pairs, protocol: str) -> None:
    """Where the Thinking template ends inside `<think>`, the block is ended before Instruct's answer is scored."""
    pair = pairs.make(protocol, "form: discrepancy", high={"tail": "<think>"})
    prompt = encode(templated([{"role": "user", "content": CHAIN}], "<think>" + CLOSED))
    own = pairs.models[0].write(encode(templated([{"role": "user", "content": CHAIN}])), 16)
    others = pairs.models[1].of_prompt(prompt + encode(own.text))[len(prompt) :]
    expected = math.fsum(p - (q or 0.0) for p, q in zip(own.logprobs, others, strict=False)) / len(others)
    assert pair.evidence()["discrepancy"] == pytest.approx(expected, abs=1e-5)


def test_tgi_s_second_beginning_of_text_is_taken_off(pairs: Pairs) -> None:
    """A tokenizer that adds <bos> before a template that has one changes nothing."""
    plain = pairs.make("tgi", "form: discrepancy").evidence()
    doubled = pairs.make("tgi", "form: discrepancy", high={"adds_bos": True})
    assert doubled.evidence()["discrepancy"] == pytest.approx(plain["discrepancy"], abs=1e-6)
    assert [c.json["inputs"][:5] for c in doubled.thinking.calls if c.path == "/generate"] == ["3+7-2"]


@both
def test_a_model_that_opens_a_think_block_is_not_sure(pairs: Pairs, protocol: str) -> None:
    """A probe that begins with <think> gives score 0, and so the largest λ, in every form."""
    pairs.models = pairs.models[::-1]
    pair = pairs.make(protocol)
    decision = pair.route(CHAINS[3])
    assert (decision["lambda"], decision["evidence"]["thinks"]) == (1.0, "yes")
    assert (decision["evidence"]["score"], decision["evidence"]["confidence"]) == (0.0, 0.0)


@both
def test_text_without_a_chat_is_probed_as_text(pairs: Pairs, protocol: str) -> None:
    """A text completion is measured on its own text, in every form; the chat template has no part in it."""
    pair = pairs.make(protocol, "form: discrepancy", extra="thinking: pass")
    text = "<bos>" + CHAIN
    own = pairs.models[0].write(encode(text), 16)
    others = pairs.models[1].of_prompt(encode(text + own.text))[len(encode(text)) :]
    expected = math.fsum(p - (q or 0.0) for p, q in zip(own.logprobs, others, strict=False)) / len(others)
    seen: list[Any] = []
    estimator = pair.client.app.router.estimator
    original = estimator.estimators[0].estimate

    async def spy(query: Any) -> Any:
        seen.append(await original(query))
        return seen[-1]

    object.__setattr__(estimator.estimators[0], "estimate", spy)
    assert pair.client.post("/v1/completions", {"prompt": text, "max_tokens": 3, "temperature": 0}).status == 200
    assert seen[0].evidence["discrepancy"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "  "}]},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    ],
)
def test_a_query_without_text_is_left_to_the_next_estimator(pairs: Pairs, body: Any) -> None:
    """Nothing is asked of any server for a query that has no text."""
    pair = pairs.make("tgi")
    answer = pair.client.post("/v1/route", body)
    assert (answer.json["estimator"], posts(pair.instruct)) == ("fixed", [])


def test_messages_of_tools_reach_the_server_as_they_are(pairs: Pairs) -> None:
    """The whole conversation is probed, tool calls and tool results with it."""
    pair = pairs.make("openai", "form: instruct")
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": CHAIN},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
    ]
    assert pair.client.post("/v1/route", {"messages": messages}).json["estimator"] == "confidence"
    assert pair.instruct.calls[0].json["messages"] == messages


def test_results_are_kept_and_asked_once(pairs: Pairs) -> None:
    """Twenty of the same query at once are one probe; later ones none; another query is another probe."""
    pair = pairs.make("openai", "form: instruct", low={"delay": 0.05})
    router = pair.client.app.router

    async def crowd() -> list[Any]:
        return await asyncio.gather(*(router.route(CHAIN) for _ in range(20)))

    found = pairs._world.loop.run(crowd())
    assert ({d.evidence["confidence"] for d in found}, len(posts(pair.instruct))) == (
        {found[0].evidence["confidence"]},
        1,
    )
    pair.route()
    assert len(posts(pair.instruct)) == 1
    pair.route(CHAINS[1])
    assert len(posts(pair.instruct)) == 2


def test_the_cache_is_bounded_and_holds_no_text(pairs: Pairs) -> None:
    """With room for two, the longest unused result goes; keys are digests."""
    pair = pairs.make("openai", "form: instruct, cache: 2")
    for chain in (*CHAINS[:3], CHAINS[0]):
        pair.route(chain)
    assert len(posts(pair.instruct)) == 4
    memo = pair.client.app.router.estimator.estimators[0].memo
    assert len(memo) == 2
    assert all(len(key) == 16 for key in memo._kept)
    assert CHAIN not in repr(vars(memo))


def test_a_slow_instruct_server_costs_no_more_than_the_limit(pairs: Pairs) -> None:
    """Past `timeout` the next estimator decides; after a few times the server is left alone for a while."""
    pair = pairs.make(
        "tgi", "form: instruct, timeout: 0.5", low={"delay": 3600.0}, extra="breaker: {failures: 2, open_s: 600}"
    )
    took = [pair.route(chain) for chain in CHAINS]
    assert [d["estimator"] for d in took] == ["fixed"] * 4
    assert max(d["route_ms"] for d in took) < 30_000
    assert len(posts(pair.instruct)) == 2
    assert pair.client.get("/health").json["variants"]["v-l000"]  # only estimation leaves it alone


def test_a_slow_thinking_server_leaves_instruct_s_confidence(pairs: Pairs) -> None:
    """auto: what is known when the time is up is used, and not kept as if it were the better form."""
    pair = pairs.make("openai", "form: auto, tokens: 4, timeout: 2", high={"delay": 3600.0})
    assert pair.evidence()["form"] == "instruct"
    pair.thinking.habits.delay = 0.0
    assert pair.evidence()["form"] == "discrepancy"


@pytest.mark.parametrize(
    "reply",
    [
        b"", b"[]", b"{}", b"null", b"<html>", b'{"choices": []}', b'{"choices": [null]}',
        b'{"choices": [{"logprobs": {"content": []}}]}',
        b'{"choices": [{"logprobs": {"content": [{"token": "4", "logprob": "high"}]}, "message": {"content": "4"}}]}',
        b'{"choices": [{"logprobs": {"content": [{"token": "4", "logprob": 3.5}]}, "message": {"content": "4"}}]}',
        b'{"choices": [{"logprobs": {"content": [{"token": 4, "logprob": NaN}]}, "message": {"content": "4"}}]}',
        b'{"choices": [{"logprobs": {"content": [{"token": "", "logprob": -1}]}, "message": {"content": null}}]}',
        b"[" * 100_000,
    ],
)  # fmt: skip
@both
def test_garbage_is_not_believed(world: World, reply: bytes, protocol: str) -> None:
    """Whatever a server sends that is no log-probability, the next estimator decides."""

    async def script(call: Any, writer: Any) -> None:
        await send(writer, 200, reply)

    server = world.tgi("v-l000") if protocol == "tgi" else world.upstream("v-l000")
    server.script = script
    client = world.router(
        ("v-l000", server), extra="estimator: {chain: [{confidence: {form: instruct, timeout: 60}}], fixed: 0.5}"
    )
    decision = client.post("/v1/route", {"messages": [{"role": "user", "content": CHAIN}]}).json
    assert decision["estimator"] == "fixed"


def test_probes_are_no_requests(pairs: Pairs) -> None:
    """Neither metrics, nor the budget, nor the router's breaker hear of probes, not even of failing ones."""
    extra = "policy: {budget: {mean_lambda: 0.9}}\nbreaker: {failures: 1}"
    pair = pairs.make("openai", "form: instruct", extra=extra)
    pair.route()

    async def broken(call: Any, writer: Any) -> None:
        writer.close()

    works, pair.instruct.script = pair.instruct.script, broken
    assert pair.route(CHAINS[1])["estimator"] == "fixed"
    router = pair.client.app.router
    assert all(replica.breaker.state == "closed" for replica in router.fleet.replicas)
    assert router.ordering.budget is not None
    assert router.ordering.budget.spent == 0.0
    metrics = pair.client.get("/metrics").body.decode()
    assert not [line for line in metrics.splitlines() if line.startswith(("dami_requests_total", "dami_upstream_f"))]
    assert [replica.outstanding for replica in router.fleet.replicas] == [0, 0]
    pair.instruct.script = works


def test_a_probe_goes_to_the_least_busy_healthy_replica(world: World, instruct: LabModel) -> None:
    """Of two replicas the one without work is asked; a dead one never is."""
    first, second = (world.start(LabVllm("v-l000", instruct)) for _ in range(2))
    gone = world.start(LabVllm("v-l000", instruct))
    world.loop.run(gone.stop())
    client = world.router(
        ("v-l000", first),
        ("v-l000", second),
        ("v-l000", gone),
        extra="estimator: {chain: [{confidence: {timeout: 60}}], fixed: 0.5}",
    )
    router = client.app.router
    router.fleet.replicas[0].outstanding = 5
    for chain in CHAINS:
        assert world.loop.run(router.route(chain)).estimator == "confidence"
    assert (len(posts(first)), len(posts(second)), len(posts(gone))) == (0, len(CHAINS), 0)


def test_a_server_restarted_with_other_flags_is_noticed(pairs: Pairs) -> None:
    """What a server lacks is asked for again when it was looked at anew, or when it had gone and came back."""
    pair = pairs.make("tgi", high={"prompt_log_probs": False}, extra="probe: {interval: 0.05, timeout: 20}")
    assert pair.evidence()["form"] == "entropy"
    loop, prober = pairs._world.loop, pair.client.app.router.prober
    replica = pair.client.app.router.fleet.replicas[1]
    pair.thinking.habits.prompt_log_probs = True
    loop.run(prober.explore(replica))
    assert pair.evidence(CHAINS[1])["form"] == "discrepancy"
    pair.thinking.habits.prompt_log_probs = False
    assert pair.evidence(CHAINS[2])["form"] == "entropy"
    loop.run(pair.thinking.stop())
    loop.run(happened(lambda: replica.health == "dead"))
    pair.thinking.habits.prompt_log_probs = True
    loop.run(pair.thinking.start())
    loop.run(happened(lambda: replica.health == "alive"))
    assert pair.evidence(CHAINS[3])["form"] == "discrepancy"


def test_a_map_turns_scores_into_lambda(pairs: Pairs, tmp_path: Path) -> None:
    """With a map, λ is the map's; a form that the map lacks is not tried."""
    path = tmp_path / "map.json"
    CalibratedMap(16, {"instruct": QuantileMap.fit([i / 100 for i in range(100)], 0.3, 0.6)}).save(path)
    pair = pairs.make("openai", f"form: auto, map: {json.dumps(str(path))}")
    decision = pair.route()
    assert decision["evidence"]["form"] == "instruct"
    assert decision["lambda"] == pytest.approx(CalibratedMap.load(path)("instruct", decision["evidence"]["score"]))
    assert posts(pair.thinking) == []


def test_without_a_map_a_rule_stands_in(pairs: Pairs) -> None:
    """λ = 1 − min(score, 1)."""
    decision = pairs.make("openai", "form: instruct").route()
    assert decision["lambda"] == pytest.approx(1 - decision["evidence"]["score"], abs=1e-6)


def test_one_variant_alone_has_its_own_confidence(world: World, instruct: LabModel) -> None:
    """auto with a single variant is Instruct's confidence."""
    server = world.start(LabVllm("v-l000", instruct))
    client = world.router(
        ("v-l000", server), extra="estimator: {chain: [{confidence: {form: auto, timeout: 60}}], fixed: 0.5}"
    )
    decision = client.post("/v1/route", {"messages": [{"role": "user", "content": CHAIN}]}).json
    assert (decision["estimator"], decision["evidence"]["form"]) == ("confidence", "instruct")


def test_what_is_asked_of_tgi_fits_its_description(pairs: Pairs) -> None:
    """Every request of every form, and what the test server replies to it, fit TGI's published schemas."""
    document = contract()
    low = pairs.make("tgi", "form: discrepancy")
    low.route()
    low.client.post("/generate", {"inputs": CHAIN, "parameters": {"max_new_tokens": 2}})
    entropy = pairs.make("tgi", "form: entropy")
    entropy.route()
    entropy.client.post("/generate", {"inputs": CHAIN, "parameters": {"max_new_tokens": 2}})
    calls = [call for pair in (low, entropy) for s in (pair.instruct, pair.thinking) for call in s.calls]
    assert {c.path for c in calls} == {"/v1/chat/completions", "/generate", "/chat_tokenize", "/tokenize"}
    for call in calls:
        described = document["paths"][call.path]["post"]
        assert refused(call.path, call.json) is None or "token" in call.path
        check(described["requestBody"]["content"]["application/json"]["schema"], call.json, document)
        reply = described["responses"]["200"]["content"]["application/json"]["schema"]
        check(reply, answered(low.instruct, call), document)


def answered(server: LabTgi, call: Any) -> Any:
    """Return what a server replies to a call."""
    request = urllib.request.Request(server.url + call.path, call.body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def test_a_trained_estimator_gets_the_confidence_that_it_was_trained_with(pairs: Pairs, tmp_path: Path) -> None:
    """`trained` asks the Instruct server with as many tokens as the chain's `confidence`, and once for both."""
    pytest.importorskip("numpy", reason="training needs numpy")
    from dami_router.estimators.store import save
    from dami_router.estimators.training import train
    from dami_router.rollouts.records import Rollout

    rows = [
        Rollout(f"q{i}", f"{i % 7}+{i % 5}=", x, correct, 2 + int(40 * x), confidence=sure, probe_tokens=3)
        for i in range(80)
        for sure in [(i * 37 % 80) / 80]
        for x in (0.0, 1.0)
        for correct in [float(x == 1 or sure > 0.5)]
    ]
    save(train(grid_of(rows)), tmp_path / "estimator")
    folder = json.dumps(str(tmp_path / "estimator"))
    pair = pairs.make("openai")
    own = pairs.models[0].write(encode(templated([{"role": "user", "content": CHAIN}])), 3)
    text = (
        "variants: [{id: v-l000, lambda: 0}, {id: v-l100, lambda: 1}]\nbackends:\n"
        + "".join(
            f'  - {{variant: {server.name}, url: "{server.url}", protocol: openai}}\n'
            for server in (pair.instruct, pair.thinking)
        )
        + f"estimator: {{chain: [{{trained: {folder}}}, {{confidence: {{tokens: 3, timeout: 60}}}}], timeout: 0.001}}"
    )
    client = pairs._world.proxy(text)
    decision = client.post("/v1/route", {"messages": [{"role": "user", "content": CHAIN}]}).json
    assert decision["estimator"] == "preference"
    assert decision["evidence"]["confidence"] == pytest.approx(mean_exp(own.logprobs), abs=1e-6)
    assert [call.json["max_tokens"] for call in pair.instruct.calls] == [3]


def test_probes_keep_their_connection_and_survive_its_end(pairs: Pairs) -> None:
    """One connection carries probe after probe; where the server has closed it meanwhile, a new one does."""
    pair = pairs.make("openai", "form: instruct", extra="timeouts: {connect: 20, keepalive: 600}")
    for chain in CHAINS[:3]:
        pair.evidence(chain)
    assert len(pair.instruct._writers) == 1
    pairs._world.loop.run(pair.instruct.drop_connections())
    pair.evidence(CHAINS[3])
    assert len(posts(pair.instruct)) == 4
