"""Routes, names, keys and ids that today's clients send."""

from __future__ import annotations

import gzip
import http.client
import json
import logging
from typing import Any

import pytest
from fakes.upstream import Script, chunk, plain, stream
from fakes.world import Client, World

SAID = [{"role": "user", "content": "2+2?"}]
RESPONSE = {
    "id": "r1", "object": "response", "status": "completed", "output": [],
    "usage": {"input_tokens": 3, "output_tokens": 11, "total_tokens": 14},
}  # fmt: skip
MESSAGE = {
    "id": "m1", "type": "message", "role": "assistant", "content": [{"type": "text", "text": "4"}],
    "usage": {"input_tokens": 3, "output_tokens": 12},
}  # fmt: skip


def proxy(world: World, script: Script | None = None, extra: str = "", keys: dict[str, str] | None = None) -> Client:
    low, high = world.pair(script, script)
    return world.router(("v-l000", low), ("v-l100", high), extra=extra, environment=keys)


def test_responses_are_routed_by_lambda_and_counted(world: World) -> None:
    """OpenAI's Responses API: λ is estimated, the reply comes back as it is, and its tokens are counted."""
    client = proxy(world, plain(data=RESPONSE))
    answer = client.post("/v1/responses", {"model": "dami", "input": "2+2?", "reasoning": {"effort": "high"}})
    assert (answer.status, answer.variant, answer.json) == (200, "v-l100", RESPONSE)
    assert client.metric('dami_tokens_total{variant="v-l100"}') == 11
    assert client.metric('dami_requests_total{route="/v1/responses",status="200",variant="v-l100"}') == 1


def test_messages_are_routed_by_lambda_and_counted(world: World) -> None:
    """Anthropic's Messages API: its thinking budget is a hint, and its tokens are counted."""
    client = proxy(world, plain(data=MESSAGE))
    body = {"model": "dami", "max_tokens": 9, "messages": SAID, "thinking": {"type": "disabled"}}
    answer = client.post("/v1/messages", body, anthropic_version="2023-06-01")
    assert (answer.status, answer.variant, answer.json) == (200, "v-l000", MESSAGE)
    assert client.metric('dami_tokens_total{variant="v-l000"}') == 12


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_their_streams_pass_event_by_event(world: World, path: str) -> None:
    """Named events reach the client as they are."""
    events = [b'event: a\ndata: {"type":"a"}\n\n', b'event: b\ndata: {"type":"b","usage":{"output_tokens":5}}\n\n']
    client = proxy(world, stream(*events))
    answer = client.post(path, {"model": "dami:1", "stream": True, "input": "x", "messages": SAID})
    assert (answer.status, answer.body) == (200, b"".join(events))
    assert client.metric('dami_tokens_total{variant="v-l100"}') == 5


def test_errors_on_messages_are_anthropic_s(world: World) -> None:
    """An error of the proxy has Anthropic's form on its route, in a reply and in a stream."""
    client = proxy(world, stream(b"event: a\ndata: {}\n\n", cut=True))
    answer = client.post("/v1/messages", {"model": "nothing", "messages": SAID})
    assert answer.json == {
        "type": "error", "error": {"type": "not_found_error", "message": answer.json["error"]["message"]},
    }  # fmt: skip
    body = client.post("/v1/messages", {"model": "dami:1", "stream": True, "messages": SAID}).body
    last = body.split(b"\n\n")[-2]
    assert last.startswith(b"event: error\ndata: ")
    assert json.loads(last.split(b"data: ")[1])["type"] == "error"


def test_a_route_that_no_backend_has_is_404(world: World) -> None:
    """TGI's routes need a TGI or live server, the new ones an OpenAI server: that does not change by waiting."""
    answer = proxy(world).post("/", {"inputs": "2+2?"})
    assert (answer.status, answer.json["error_type"]) == (404, "validation")
    assert "`tgi` or `live`" in answer.json["error"]
    client = world.router(("v-l000", world.tgi("v-l000")))
    assert client.post("/v1/messages", {"messages": SAID}).status == 404
    assert "`openai`" in client.post("/v1/responses", {"input": "x"}).json["error"]["message"]


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/responses", "/messages"])
def test_routes_without_v1_are_the_same(world: World, path: str) -> None:
    """A client whose base URL lacks /v1 is served as any other; the server gets the full path."""
    client = proxy(world)
    assert client.post(path, {"model": "dami:0", "messages": SAID, "prompt": "x", "input": "x"}).status == 200
    assert client.metric(f'dami_requests_total{{route="/v1{path}",status="200",variant="v-l000"}}') == 1
    assert client.get("/models").json == client.get("/v1/models").json


def test_one_model_can_be_asked_for(world: World) -> None:
    """GET /v1/models/{id} knows what the list has, and every λ; for another name the message says what to send."""
    client = proxy(world)
    for id in ("dami", "v-l100", "dami:0.37"):
        assert client.get(f"/v1/models/{id}").json["id"] == id
    unknown = client.get("/v1/models/gpt-4o")
    assert unknown.status == 404
    assert unknown.json["error"]["message"] == client.chat(model="gpt-4o").json["error"]["message"]
    assert unknown.json["error"]["message"] == "no model `gpt-4o`; expected `dami`, `dami:0.37`, `v-l000` or `v-l100`"


def test_an_alias_is_another_name(world: World) -> None:
    """A name that clients hard-code stands for `dami`, a λ or a variant; what is no alias stays a 404 with advice."""
    client = proxy(world, extra='aliases: {gpt-4o: dami, "openai/dami": "dami:1", o1: v-l100}\nestimator: {fixed: 0}')
    for alias, variant, estimator in (
        ("gpt-4o", "v-l000", "fixed"), ("openai/dami", "v-l100", "pinned"), ("o1", "v-l100", "pinned"),
    ):  # fmt: skip
        answer = client.post("/v1/chat/completions", {"model": alias, "messages": SAID})
        assert (answer.status, answer.variant, answer.headers["x-dami-estimator"]) == (200, variant, estimator)
    listed = [entry["id"] for entry in client.get("/v1/models").json["data"]]
    assert listed == ["dami", "v-l000", "v-l100", "gpt-4o", "openai/dami", "o1"]
    answer = client.post("/v1/chat/completions", {"model": "gpt-4", "messages": SAID})
    assert answer.status == 404
    assert "did you mean `gpt-4o`?" in answer.json["error"]["message"]


def test_other_routes_pass_where_they_are_allowed_by_name(world: World) -> None:
    """/v1/embeddings goes to the smallest λ that is there, or to the variant that is named; others stay 404."""
    client = proxy(world, plain(data={"data": [[0.5]]}), extra="pass_through: [/v1/embeddings, /tokenize]")
    answer = client.post("/v1/embeddings", {"model": "dami", "input": "x"})
    assert (answer.status, answer.variant, answer.json) == (200, "v-l000", {"data": [[0.5]]})
    assert client.post("/tokenize", {"model": "v-l100", "prompt": "x"}).variant == "v-l100"
    assert client.post("/detokenize", {"model": "dami", "tokens": [1]}).status == 404
    assert proxy(world).post("/v1/embeddings", {"input": "x"}).status == 404


def test_browsers_of_allowed_origins_may_ask(world: World) -> None:
    """With `cors`, preflights need no key, and replies and errors name the origin; others get nothing."""
    client = proxy(world, extra='cors: ["http://app.example"]\napi_keys_env: [KEY]', keys={"KEY": "sesame"})
    asked = {
        "origin": "http://app.example", "access_control_request_method": "POST",
        "access_control_request_headers": "authorization, content-type",
    }  # fmt: skip
    answer = client.call("OPTIONS", "/v1/chat/completions", None, asked)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "http://app.example"
    assert answer.headers["access-control-allow-headers"] == "authorization, content-type"
    assert "POST" in answer.headers["access-control-allow-methods"]
    refused = client.post("/v1/chat/completions", {}, origin="http://app.example")
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "http://app.example")
    other = client.call("OPTIONS", "/v1/models", None, {**asked, "origin": "http://evil.example"})
    assert not [name for name in other.headers if name.startswith("access-control")]
    assert not [name for name in proxy(world).get("/health", origin="http://a").headers if name.startswith("access")]


def test_options_and_head_are_answered(world: World) -> None:
    """OPTIONS names a path's methods, HEAD gives a GET's headers without its body, and 405 says what is allowed."""
    client = proxy(world)
    answer = client.call("OPTIONS", "/v1/models", None, {})
    assert (answer.status, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    head, get = client.call("HEAD", "/v1/models", None, {}), client.get("/v1/models")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", get.headers["content-length"])
    answer = client.get("/v1/completions")
    assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")
    assert client.call("OPTIONS", "/nowhere", None, {}).status == 404


@pytest.mark.parametrize(
    "headers",
    [{"authorization": "Bearer sesame"}, {"authorization": "bearer sesame"}, {"authorization": "BEARER  sesame"},
     {"x_api_key": "sesame"}, {"api_key": "sesame"}],
    ids=["Bearer", "bearer", "BEARER", "x-api-key", "api-key"],
)  # fmt: skip
def test_a_key_comes_as_clients_send_it(world: World, headers: dict[str, str]) -> None:
    """The scheme in any case, Anthropic's header and Azure's; none of them reaches the server."""
    low = world.upstream("v-l000")
    client = world.router(("v-l000", low), extra="api_keys_env: [KEY]", environment={"KEY": "sesame"})
    assert client.post("/v1/chat/completions", {"messages": SAID}, **headers).status == 200
    assert "sesame" not in str(low.calls[0].headers)


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "sesame"}, {"authorization": "Basic sesame"}, {"authorization": "Bearer"},
     {"x_api_key": "sesame2"}, {"api_key": ""}],
)  # fmt: skip
def test_anything_else_is_no_key(world: World, headers: dict[str, str]) -> None:
    """Without the scheme, with another one, or with another key, the request is refused."""
    client = proxy(world, extra="api_keys_env: [KEY]", keys={"KEY": "sesame"})
    assert client.post("/v1/chat/completions", {"messages": SAID}, **headers).status == 401


def test_every_reply_has_the_request_s_id(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A client's id is echoed on answers and errors and reaches the server; without one, the proxy makes it."""
    low = world.upstream("v-l000")
    client = world.router(("v-l000", low))
    for path, body in (("/v1/chat/completions", {"messages": SAID}), ("/v1/chat/completions", {"model": "none"})):
        assert client.post(path, body, x_request_id="mine-1").headers["x-request-id"] == "mine-1"
    assert low.calls[0].headers["x-request-id"] == "mine-1"
    for made in (client.post("/generate", {"inputs": "x"}), client.get("/health"), client.get("/nowhere")):
        assert len(made.headers["x-request-id"]) == 32
    odd = client.post("/v1/chat/completions", {"messages": SAID}, x_request_id="a" * 300).headers["x-request-id"]
    assert len(odd) == 32
    world.loop.run(low.stop())
    with caplog.at_level(logging.WARNING, "dami_router"):
        assert client.post("/v1/chat/completions", {"messages": SAID}, x_request_id="mine-2").status == 502
    assert [r.getMessage() for r in caplog.records if "mine-2" in r.getMessage()]
    assert "2+2?" not in caplog.text


def test_a_server_s_own_id_does_not_replace_the_client_s(world: World) -> None:
    """Servers that send an x-request-id of their own are not heard: there is one id, the client's."""
    client = proxy(world, plain(x_request_id="theirs"))
    answer = client.post("/v1/chat/completions", {"messages": SAID}, x_request_id="mine")
    assert answer.headers["x-request-id"] == "mine"


def test_what_a_server_must_not_say_is_dropped_in_any_case_of_its_letters(world: World) -> None:
    """Cookies, and headers that only the router sets, stay behind however a server writes their names."""
    evil = {"Set_Cookie": "a=b", "SET_cookie": "c=d", "X_DAMI_Variant": "evil", "X_Dami_Note": "evil", "X_Own": "kept"}
    answer = proxy(world, plain(**evil)).post("/v1/chat/completions", {"messages": SAID})
    assert (answer.headers["x-dami-variant"], answer.headers["x-own"]) == ("v-l000", "kept")
    assert {"set-cookie", "x-dami-note"}.isdisjoint(answer.headers)


def packed(data: bytes) -> Script:
    async def script(call: Any, writer: Any) -> None:
        head = (
            f"HTTP/1.1 200 X\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\ncontent-length: {len(data)}"
        )
        writer.write(head.encode() + b"\r\n\r\n" + data)
        await writer.drain()

    return script


def streamed(encoding: str, *pieces: bytes, cut: bool = False) -> Script:
    async def script(call: Any, writer: Any) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
        writer.write(f"content-encoding: {encoding}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        for piece in pieces:
            writer.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
        if cut:
            await writer.drain()
            writer.close()
            return
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    return script


def test_a_server_that_compresses_unasked_is_decoded(world: World) -> None:
    """gzip in a reply or a stream reaches the client plain, with its tokens counted and thoughts split."""
    data = json.dumps(RESPONSE).encode()
    answer = proxy(world, packed(gzip.compress(data))).post("/v1/responses", {"model": "dami:0", "input": "x"})
    assert (answer.body, answer.headers.get("content-encoding")) == (data, None)
    events = [chunk("<think>a</think>b"), chunk("", "stop"), b"data: [DONE]\n\n"]
    whole = gzip.compress(b"".join(events))
    client = proxy(world, streamed("gzip", whole[:20], whole[20:]), extra="thinking: split")
    found = client.post("/v1/chat/completions", {"model": "dami:0", "stream": True, "messages": SAID})
    assert b'"reasoning_content"' in found.body
    assert found.body.endswith(b"data: [DONE]\n\n")


def test_a_gzip_reply_of_several_members_is_whole(world: World) -> None:
    """gzip allows several members, and padding after the last: none of them is lost."""
    data = json.dumps(RESPONSE).encode()
    members = gzip.compress(data[:40]) + gzip.compress(data[40:])
    for sent in (members, members + bytes(20)):
        answer = proxy(world, packed(sent)).post("/v1/responses", {"model": "dami:0", "input": "x"})
        assert answer.body == data


def test_an_encoding_that_the_proxy_does_not_know_passes_untouched(world: World) -> None:
    """br is passed on byte for byte with its header; a stream of it that breaks off is no clean end."""
    pieces = (b"\x0b\x02\x80", b"\n\nxyz\x03")
    answer = proxy(world, streamed("br", *pieces)).post(
        "/v1/chat/completions", {"model": "dami:0", "stream": True, "messages": SAID}
    )
    assert (answer.body, answer.headers["content-encoding"]) == (b"".join(pieces), "br")
    client = proxy(world, streamed("br", *pieces, cut=True))
    with pytest.raises(http.client.IncompleteRead) as broken:
        client.post("/v1/chat/completions", {"model": "dami:0", "stream": True, "messages": SAID})
    assert broken.value.partial == b"".join(pieces)


def test_a_damaged_compressed_reply_falls_back(world: World) -> None:
    """A whole reply whose gzip is cut off is no answer: the next variant is asked."""
    low = world.upstream("v-l000", packed(gzip.compress(b"x" * 1000)[:-8]))
    client = world.router(("v-l000", low), ("v-l100", world.upstream("v-l100")), extra="estimator: {fixed: 0}")
    assert client.chat().variant == "v-l100"


def test_streams_on_tgi_s_root_are_streams(world: World) -> None:
    """huggingface_hub and text-generation stream with `stream: true` on `/`; TGI answers with events there."""
    server = world.tgi("v-l000")
    client = world.router(("v-l000", server))
    answer = client.post("/", {"inputs": "2+2?", "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[5:]) for line in answer.body.decode().split("\n\n") if line]
    assert "".join(event["token"]["text"] for event in events) == "It is 4"
    assert events[-1]["generated_text"] == "It is 4"
    whole = client.post("/", {"inputs": "2+2?"})
    assert whole.json == [{"generated_text": "It is 4"}]


def test_thoughts_have_both_of_their_names(world: World) -> None:
    """`thinking: split` puts thoughts into `reasoning_content` and, as newer clients read it, into `reasoning`."""
    events = [chunk("<think>a"), chunk("</think>b", "stop"), b"data: [DONE]\n\n"]
    client = proxy(world, stream(*events), extra="thinking: split")
    body = client.post("/v1/chat/completions", {"model": "dami:0", "stream": True, "messages": SAID}).body
    deltas = [json.loads(e[6:])["choices"][0]["delta"] for e in body.split(b"\n\n") if e.startswith(b"data: {")]
    assert "".join(d.get("reasoning_content") or "" for d in deltas) == "a"
    assert "".join(d.get("reasoning") or "" for d in deltas) == "a"
    assert "".join(d.get("content") or "" for d in deltas) == "b"
