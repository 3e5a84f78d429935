"""The proxy between clients and servers without faults: what reaches whom, byte for byte."""

from __future__ import annotations

import json
import socket
import threading

import pytest
from fakes.upstream import chat, chunk, plain, stream
from fakes.world import World, router_yml

ANSWER = (
    b'{"id":"c1" , "choices":[{"message":{"content":"4"}}],"usage":{"completion_tokens":7},"x":1.10000000000000000001}'
)


def test_a_reply_comes_back_byte_for_byte_with_the_decision_in_headers(world: World) -> None:
    """A whole reply is not changed, and x-dami-* say which variant gave it and why."""
    low, high = world.pair(plain(data=ANSWER), plain(data=ANSWER))
    client = world.router(("v-l000", low), ("v-l100", high), extra="estimator: {fixed: 0.9}")
    answer = client.chat()
    assert (answer.status, answer.body) == (200, ANSWER)
    assert answer.headers["x-dami-lambda"] == "0.9"
    assert answer.variant == "v-l100"
    assert answer.headers["x-dami-estimator"] == "fixed"
    assert answer.headers["x-dami-attempts"] == "1"
    assert 0 <= float(answer.headers["x-dami-route-ms"]) < 60_000
    assert (len(low.calls), len(high.calls)) == (0, 1)


def test_a_request_reaches_the_server_with_nothing_but_its_model_replaced(world: World) -> None:
    """Unknown fields, odd spacing and numbers beyond a double's precision arrive as they were sent."""
    server = world.upstream("v-l000")
    client = world.router(("v-l000", server))
    body = (
        b'{"messages" :[{"role":"user","content":"\\u00e9\xc3\xa9"}],  "model":"dami","seed":9007199254740993,"t":0.10}'
    )
    client.post("/v1/chat/completions", body)
    assert server.calls[0].body == body.replace(b'"dami"', b'"v-l000"')


def test_a_stream_is_passed_on_event_by_event_as_it_comes(world: World) -> None:
    """The first event reaches the client while the server still works on the second."""
    pieces = (chunk("1"), chunk("2", "stop"), b"data: [DONE]\n\n")
    gate = threading.Event()
    server = world.upstream("v-l000", stream(*pieces, gate=gate))
    client = world.router(("v-l000", server))
    body = json.dumps({"messages": [], "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        received = b""
        while pieces[0] not in received:
            received += connection.recv(65536)
        assert pieces[1] not in received
        gate.set()
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(65536)
    assert all(piece in received for piece in pieces)


@pytest.mark.parametrize(
    ("model", "effort", "variant", "estimator"),
    [
        ("dami", None, "v-l050", "fixed"),
        ("dami", "none", "v-l000", "effort"),
        ("dami", "high", "v-l100", "effort"),
        ("dami:1", "none", "v-l100", "pinned"),
        ("dami:0.3", None, "v-l050", "pinned"),
        ("dami:.2", None, "v-l000", "pinned"),
        ("v-l000", "high", "v-l000", "pinned"),
        ("tgi", None, "v-l050", "fixed"),
        ("dummy", None, "v-l050", "fixed"),
        (None, None, "v-l050", "fixed"),
    ],
)
def test_model_names_and_effort_choose_the_variant(
    world: World, model: str | None, effort: str | None, variant: str, estimator: str
) -> None:
    """`dami` estimates, `dami:λ` and a variant's id pin, and reasoning_effort is a hint to the estimator."""
    servers = [(name, world.upstream(name)) for name in ("v-l000", "v-l050", "v-l100")]
    client = world.router(*servers)
    fields = {"model": model, "reasoning_effort": effort, "messages": [{"role": "user", "content": "hi"}]}
    answer = client.post("/v1/chat/completions", {k: v for k, v in fields.items() if v is not None})
    assert (answer.variant, answer.headers["x-dami-estimator"]) == (variant, estimator)


@pytest.mark.parametrize("model", ["gpt-4o", "dami:2", "dami:x", "v-l001", "dami:-0.1", "dami:nan"])
def test_an_unknown_model_is_404_in_openai_s_form(world: World, model: str) -> None:
    """A name that is no variant and no λ is refused before any server is asked; of a λ it is said which there are."""
    server = world.upstream("v-l000")
    client = world.router(("v-l000", server))
    answer = client.chat(model=model)
    assert (answer.status, answer.json["error"]["code"], server.calls) == (404, "model_not_found", [])
    assert ("from 0 to 1" in answer.json["error"]["message"]) == model.startswith("dami:")


def test_effort_may_shift_an_estimate_instead_of_pinning_it(world: World) -> None:
    """With effort_shift and no effort estimator, the hint moves what the others estimate."""
    servers = [(name, world.upstream(name)) for name in ("v-l000", "v-l050", "v-l100")]
    client = world.router(*servers, extra="estimator: {chain: [], fixed: 0.5}\neffort_shift: {low: -0.4, high: 0.4}")
    assert [client.chat(reasoning_effort=e).variant for e in ("low", "medium", "high")] == [
        "v-l000",
        "v-l050",
        "v-l100",
    ]


def test_the_model_list_has_dami_and_every_variant(world: World) -> None:
    """GET /v1/models names what a client may ask for."""
    low, high = world.pair()
    client = world.router(("v-l000", low), ("v-l100", high), extra="estimator: {chain: []}")
    assert [entry["id"] for entry in client.get("/v1/models").json["data"]] == ["dami", "v-l000", "v-l100"]


def test_a_variant_without_a_server_cannot_be_asked_for(world: World) -> None:
    """It is not in the model list, and asking for it is 404 that says why, not 503 that invites to try again."""
    served = router_yml(("v-l000", world.upstream("v-l000")), extra="estimator: {chain: []}")
    client = world.proxy(served.replace("variants:", "variants:\n  - {id: v-l050, lambda: 0.5}"))
    assert [entry["id"] for entry in client.get("/v1/models").json["data"]] == ["dami", "v-l000"]
    for path in ("/v1/chat/completions", "/v1/route"):
        refused = client.post(path, {"model": "v-l050", "messages": []})
        assert (refused.status, "`v-l050` has no server" in refused.json["error"]["message"]) == (404, True)


def test_route_decides_without_generating(world: World) -> None:
    """POST /v1/route returns the decision with its evidence, and no server is asked."""
    low, high = world.pair()
    client = world.router(("v-l000", low), ("v-l100", high))
    found = client.post("/v1/route", {"messages": [], "reasoning_effort": "high"}).json
    assert (found["lambda"], found["variant"], found["order"]) == (1.0, "v-l100", ["v-l100", "v-l000"])
    assert found["evidence"] == {"effort": "high"}
    assert low.calls + high.calls == []


def test_metrics_tell_what_happened(world: World) -> None:
    """Requests, tokens, λ and the state of every server are in /metrics, under bounded labels."""
    low, high = world.pair()
    client = world.router(("v-l000", low), ("v-l100", high))
    client.chat(reasoning_effort="high")
    client.chat(reasoning_effort="none", stream=True)
    assert client.metric('dami_requests_total{route="/v1/chat/completions",status="200",variant="v-l100"}') == 1
    assert client.metric('dami_tokens_total{variant="v-l100"}') == 7
    assert client.metric('dami_tokens_total{variant="v-l000"}') == 3
    assert client.metric('dami_lambda_bucket{le="0.0"}') == 1
    assert client.metric(f'dami_up{{url="{low.url}",variant="v-l000"}}') == 1
    assert client.metric(f'dami_breaker{{url="{low.url}",variant="v-l000"}}') == 0


def test_a_server_s_refusal_of_the_request_is_passed_on(world: World) -> None:
    """A 400 of the server is the client's business: no fallback, same bytes."""
    error = {"error": {"message": "bad max_tokens", "type": "invalid_request_error"}}
    low, high = world.pair(plain(400, error), plain(400, error))
    client = world.router(("v-l000", low), ("v-l100", high))
    answer = client.chat()
    assert (answer.status, answer.json, len(low.calls) + len(high.calls)) == (400, error, 1)


def test_keys_are_asked_for_and_never_passed_on(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Without a right key there is 401 (health excepted); the server sees its own key, and no log holds one."""
    server = world.upstream("v-l000")
    text = (
        "variants: [{id: v-l000, lambda: 0}]\napi_keys_env: [ONE, TWO]\nbackends:\n"
        f'  - {{variant: v-l000, url: "{server.url}", protocol: openai, api_key_env: UP}}'
    )
    client = world.proxy(text, {"ONE": "sk-one", "TWO": "sk-two", "UP": "sk-up"})
    message = {"messages": [{"role": "user", "content": "my-secret-prompt"}]}
    assert client.post("/v1/chat/completions", message).json["error"]["code"] == "invalid_api_key"
    assert client.post("/v1/chat/completions", message, authorization="Bearer sk-onf").status == 401
    assert client.post("/v1/chat/completions", message, authorization="Bearer sk-two").status == 200
    assert (client.get("/metrics").status, client.get("/v1/models").status, client.get("/health").status) == (
        401,
        401,
        200,
    )
    assert server.calls[0].headers["authorization"] == "Bearer sk-up"
    assert not any(secret in caplog.text for secret in ("sk-", "my-secret-prompt"))


def test_a_body_over_the_limit_is_413(world: World) -> None:
    """A body is refused by its declared length, and while it is read where it declares none."""
    server = world.upstream("v-l000")
    client = world.router(("v-l000", server), extra="limits: {body_bytes: 1000}")
    assert client.chat("x" * 2000).status == 413
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        connection.sendall(b"7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")
    assert server.calls == []


def test_paths_and_methods_that_are_not_there(world: World) -> None:
    """Other paths are 404, other methods 405, in OpenAI's form."""
    client = world.router(("v-l000", world.upstream("v-l000")))
    assert (client.get("/v2").status, client.get("/v1/chat/completions").status) == (404, 405)
    assert client.post("/health", {}).json["error"]["message"]


def test_thoughts_can_be_split_off(world: World) -> None:
    """With `thinking: split` the block moves to reasoning_content, whole or streamed; by default nothing is touched."""
    text = "<think>2 and 2</think>\n\n4"
    events = [chunk(piece) for piece in ("<thi", "nk>2 and", " 2</th", "ink>\n", "\n4")] + [chunk("", "stop")]
    server = world.upstream("v-l000", plain(data=chat(text)))
    client = world.router(("v-l000", server), extra="thinking: split")
    message = client.chat().json["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("2 and 2", "4")
    server.script = stream(*events, b"data: [DONE]\n\n")
    lines = [line[6:] for line in client.chat(stream=True).body.split(b"\n") if line.startswith(b"data: {")]
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == "2 and 2"
    assert "".join(d["content"] for d in deltas) == "4"
    server.script = plain(data=chat(text))
    untouched = world.router(("v-l000", server))
    assert untouched.chat().json["choices"][0]["message"]["content"] == text
