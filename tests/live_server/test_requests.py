"""Requests that are wrong, too long, too many, or whose client leaves: the server goes on serving the others."""

from __future__ import annotations

import json
import shutil
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fakes.loop import Loop
from fakes.waiting import until
from fakes.world import Answer, Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.live_servers import section, served

from dami_merge.build import Options, build_family
from dami_merge.live import Engine, Event
from dami_merge.live_server import known_fields
from dami_merge.recipes.recipe import parse_recipe
from dami_router.config.router_yml import parse_config
from dami_router.errors import RecipeError
from dami_router.router import Router

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["1+1=", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
TABLES = (known_fields.CHAT, known_fields.COMPLETION, known_fields.TGI_PARAMETERS, known_fields.TOKENIZE)
FIELDS = st.sampled_from(
    sorted({"inputs", "parameters", "grammar"}.union(*(t.used | t.harmless | set(t.neutral) for t in TABLES)))
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool", ""]) | JSON},
        optional={"content": JSON, "tool_calls": JSON | st.lists(st.fixed_dictionaries({"function": JSON}))},
    ),
    max_size=2,
)
ASKED = [{"role": "user", "content": "1+1="}]
TGI: dict[str, Any] = {"inputs": "1+1=", "parameters": {}}
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": ASKED, "max_tokens": 2},
    "/v1/completions": {"prompt": "1+1=", "max_tokens": 2},
    "/tokenize": {"messages": ASKED},
    "/generate": TGI, "/generate_stream": TGI, "/": TGI,
}  # fmt: skip
ENDLESS: dict[str, Any] = {"model": "dami:1", "prompt": "<bos>1+1=", "max_tokens": 250, "ignore_eos": True}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(GOOD)),
    st.dictionaries(FIELDS, JSON, max_size=2),
    st.dictionaries(FIELDS, JSON, max_size=2),
    MESSAGES,
)
def test_no_body_is_answered_with_500(
    server: Client, path: str, fields: dict[str, Any], inner: dict[str, Any], messages: list[Any]
) -> None:
    """Whatever a body holds, it is answered, or refused as the client's mistake in the route's own form."""
    good = {**GOOD[path]}
    if "messages" in good and messages:
        good["messages"] = messages
    if "parameters" in good:
        good["parameters"] = {"max_new_tokens": 2, **inner}
    body = {**good, **fields}
    answer = server.post(path, json.dumps(body, ensure_ascii=True).encode())
    assert answer.status in (200, 400, 404, 422), answer.body
    if answer.status != 200:
        assert answer.json["error"]


def test_a_prompt_that_is_too_long_is_refused(server: Client) -> None:
    """A prompt without room for an answer is 400 with OpenAI's code, also among others in one request; 422 on TGI's."""
    chat = server.chat("1" * 255, model="dami:0.5")
    assert (chat.status, chat.json["error"]["code"]) == (400, "context_length_exceeded")
    assert "256 tokens" in chat.json["error"]["message"]
    assert server.post("/v1/completions", {"prompt": ["1", "1" * 256]}).status == 400
    nothing = server.post("/v1/completions", {"prompt": "1", "max_tokens": 0})
    assert nothing.json["error"]["message"] == "`max_tokens` must be from 1 to 1073741824, found 0"
    assert server.post("/generate", {"inputs": "1" * 300}).status == 422
    assert server.post("/v1/completions", {"prompt": [22]}).status == 400
    longest = server.chat("1" * 254, model="dami:0.5").json
    assert (longest["usage"]["completion_tokens"], longest["choices"][0]["finish_reason"]) == (1, "length")


def begun(client: Client, body: dict[str, Any], headers: bytes = b"") -> socket.socket:
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", client.port), timeout=60)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n" + headers + b"content-length: %d\r\n\r\n" % len(data)
    connection.sendall(head + data)
    return connection


def metric_is(client: Client, line: str, value: float) -> None:
    until(lambda: client.metric(line) == value)


def slow(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each step take its time, so that the longest answer outlasts what a test does meanwhile."""
    right = engine.step

    def step() -> list[Event]:
        time.sleep(0.05)
        return right()

    monkeypatch.setattr(engine, "step", step, raising=False)


def test_clients_that_leave_free_their_rows(server: Client, eight: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve clients fill eight rows and a queue; when they leave, streaming or not, nothing of theirs goes on."""
    slow(eight, monkeypatch)
    gone = server.metric("dami_clients_gone_total")
    with ExitStack() as clients:
        for stream in (True, False) * 6:
            clients.enter_context(begun(server, {**ENDLESS, "stream": stream}))
        metric_is(server, "dami_live_rows", 8)
        metric_is(server, "dami_live_waiting", 4)
    metric_is(server, "dami_live_rows", 0)
    metric_is(server, "dami_clients_gone_total", gone + 12)
    assert server.metric("dami_live_waiting") == 0
    assert server.chat("1+1=", model="dami:0").status == 200


@pytest.fixture
def engine(pair: tuple[str, str]) -> Engine:
    return Engine.load(*pair, mode="mixed", max_rows=2)


def test_keys_and_limits_are_the_proxy_s(
    loop: Loop, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A section of router.yml asks for a key, bounds bodies and requests, limits λ, and 429 says when to come again."""
    monkeypatch.setenv("K", "secret")
    text = (
        "api_keys_env: [K]\nlimits: {concurrency: 1, queue: 1, queue_wait: 0.2, body_bytes: 300}\n"
        "policy: {lambda_max: 0.4}\nestimator: {chain: [], fixed: 0.9}\n"
    )
    key = {"authorization": "Bearer secret"}
    with served(loop, engine, section(tmp_path, text, engine)) as client:
        assert client.chat("1+1=").status == 401
        assert client.post("/tokenize", {"prompt": "1"}).status == 401
        body = {"messages": [{"role": "user", "content": "1+1="}]}
        answer = client.post("/v1/chat/completions", body, **key)
        assert (answer.status, answer.headers["x-dami-lambda"]) == (200, "0.4")
        assert client.post("/v1/chat/completions", {**body, "user": "y" * 300}, **key).status == 413
        slow(engine, monkeypatch)
        with begun(client, {**ENDLESS, "stream": True}, b"authorization: Bearer secret\r\n") as busy:
            busy.recv(100)
            full = client.post("/v1/chat/completions", body, **key)
            assert (full.status, full.headers["retry-after"]) == (429, "1")


def test_pass_through_takes_no_route_from_the_server(loop: Loop, engine: Engine, tmp_path: Path) -> None:
    """A section that passes /tokenize on leaves the server's own; a path that it lacks is 404, in OpenAI's form."""
    config = section(tmp_path, "pass_through: [/tokenize, /v1/rerank]\n", engine)
    with served(loop, engine, config) as client:
        found = client.post("/tokenize", {"prompt": "3+4=", "model": "dami:0.3"})
        assert (found.status, found.json["count"]) == (200, 4)
        for path, model in (("/v1/rerank", "dami"), ("/v1/rerank", "dami:0.3")):
            answer = client.post(path, {"input": "x", "model": model})
            assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")
        assert client.chat("3+4=", model="dami:0.3", max_tokens=2).status == 200


def test_a_section_says_nothing_about_models(engine: Engine, tmp_path: Path) -> None:
    """`backends`, `family` and `variants` are refused with their line: the server knows its own models."""
    for key in ("backends: []", "family: x", "variants: []"):
        with pytest.raises(RecipeError, match=r"section.yml:1: .*knows its own models"):
            section(tmp_path, key + "\n", engine)


def test_thoughts_are_split_where_the_section_says_so(loop: Loop, engine: Engine, tmp_path: Path) -> None:
    """`thinking: split` moves thoughts into reasoning_content, in whole replies and in streams."""
    with served(loop, engine, section(tmp_path, "thinking: split", engine)) as client:
        message = client.chat("3+7-2>5=", model="dami:0.6").json["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == ("8", "3+7=0;0-2=8;8>5=8")
        body = client.chat("3+7-2>5=", model="dami:0.6", stream=True).body.decode()
        deltas = [
            json.loads(line[6:])["choices"][0]["delta"] for line in body.splitlines() if line.startswith("data: {")
        ]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message["reasoning_content"]
        assert "".join(delta.get("content", "") for delta in deltas) == "8"


def test_confidence_works_with_one_process(loop: Loop, engine: Engine, tmp_path: Path) -> None:
    """The zero-shot estimator asks the engine beside it, both endpoints, and its λ is what the query is answered at."""
    text = "estimator: {chain: [confidence: {form: discrepancy}], fixed: 0.111, timeout: 20}\n"
    with served(loop, engine, section(tmp_path, text, engine)) as client:
        found = [client.chat(chain) for chain in ("1+1=", "9>9>9>9>9=", "3+7-2+5-9+4-8+6=")]
        assert {answer.headers["x-dami-estimator"] for answer in found} == {"confidence"}
        lambdas = [float(answer.headers["x-dami-lambda"]) for answer in found]
        assert len(set(lambdas)) == 3
        assert [answer.json["model"] for answer in found] == [answer.variant for answer in found]


class _Breaking:
    """An engine's `step` that fails once, and then gives up every row as if memory had run out."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.right, self.calls = engine, engine.step, 0

    def __call__(self) -> list[Event]:
        self.calls += 1
        if self.calls == 1:
            raise RuntimeError("a broken kernel")
        events = self.right()
        if self.calls in (2, 4):
            for event in events:
                self.engine.remove(event.row)
            return [Event(event.row, None, finish_reason="error", error="out of memory") for event in events]
        return events


def test_what_breaks_in_the_engine_is_told_and_survived(
    loop: Loop, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing step is 500, a row given up 503 or an error event, and the next request is answered."""
    with served(loop, engine, section(tmp_path, "{}", engine)) as client:
        monkeypatch.setattr(engine, "step", _Breaking(engine), raising=False)

        def ask(**fields: Any) -> Answer:
            return client.chat("1+1=", model="dami:1", **fields)

        assert "failed" in ask().json["error"]["message"]
        full = ask(stream=True)
        assert (full.status, full.json["error"]["code"]) == (503, "out_of_memory")
        broken = ask(stream=True)
        assert broken.status == 200
        assert b"out of memory" in broken.body
        assert ask().status == 200
        assert client.get("/health").status == 200


RECIPE = """\
merge_method: dami
base_model: {0}
models: [{{model: {1}}}]
parameters: {{lambda: 0.5}}
dtype: bfloat16
family: {{name: Fam, lambdas: [0, 0.5], path: {2}}}
"""


def test_a_built_family_s_manifest_is_held_against_a_live_server(
    server: Client, pair: tuple[str, str], loop: Loop, tmp_path: Path
) -> None:
    """A router takes the server that holds the family's own files along its path, by their hashes, and no other."""

    def trouble(path: str, other: str) -> str:
        out = tmp_path / f"{path}-{Path(other).parent.name}"
        build_family(parse_recipe(RECIPE.format(pair[0], other, path)), out, Options())
        text = f'family: "{out}"\nbackends: [{{url: "{server.url}", protocol: live}}]\n'

        async def look() -> str:
            async with Router(parse_config(text, {})) as router:
                return router.fleet.replicas[0].trouble

        return loop.run(look())

    assert trouble("uniform", pair[1]) == ""
    assert trouble("late(0.5)", pair[1]) == "spreads λ by the path uniform, expected late(0.5)"
    changed = tmp_path / "changed" / "thinking"
    shutil.copytree(pair[1], changed)
    weights = load_file(changed / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, changed / "model.safetensors")
    assert "whose model.safetensors differs from the family's" in trouble("uniform", str(changed))
