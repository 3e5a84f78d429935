"""Real, unchanged clients against the proxy: openai, huggingface_hub, and our own."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from fakes.upstream import chunk, plain, stream
from fakes.waiting import until
from fakes.world import World
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import ValidationError

import dami_router
from dami_router import AsyncDamiClient, DamiClient, FailureError, Router
from dami_router.config.router_yml import parse_config

ASK = [{"role": "user", "content": "2+2?"}]
PRESETS = [f"dami:{effort}" for effort in ("none", "minimal", "low", "medium", "high")]


def test_an_unchanged_openai_client_sees_different_lambda_for_different_efforts(world: World) -> None:
    """Nothing but base_url is set; effort moves λ, which the raw response's headers show."""
    low, high = world.pair()
    url = world.router(("v-l000", low), ("v-l100", high)).url
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        raw = client.chat.completions.with_raw_response
        replies = [raw.create(model="dami", messages=ASK, reasoning_effort=e) for e in ("low", "high")]
        assert [r.headers["x-dami-variant"] for r in replies] == ["v-l000", "v-l100"]
        assert [r.parse().choices[0].message.content for r in replies] == ["4", "4"]
        assert [model.id for model in client.models.list()] == ["dami", *PRESETS, "v-l000", "v-l100"]


def test_an_openai_client_streams(world: World) -> None:
    """Chunks arrive as chunks; an error in mid-stream is openai's own exception."""
    server = world.upstream("v-l000", stream(chunk("1"), chunk("2", "stop"), b"data: [DONE]\n\n"))
    url = world.router(("v-l000", server)).url
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        events = client.chat.completions.create(model="dami", messages=ASK, stream=True)
        assert "".join(e.choices[0].delta.content or "" for e in events) == "12"
        server.script = stream(chunk("1"), b'data: {"choi', cut=True)
        with pytest.raises(openai.APIError, match="broke off"):
            list(client.chat.completions.create(model="dami", messages=ASK, stream=True))


def test_our_errors_are_openai_s_exceptions(world: World) -> None:
    """An unknown model, no server and overload are the exceptions that an application already handles."""
    server = world.upstream("v-l000")
    url = world.router(("v-l000", server)).url
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt-x", messages=ASK)
        server.script = plain(429, {})
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="dami", messages=ASK)
        server.script = plain(500, {})
        with pytest.raises(openai.InternalServerError, match="no server answered"):
            client.chat.completions.create(model="dami", messages=ASK)


def test_huggingface_hub_s_client_works_unchanged(world: World) -> None:
    """chat_completion, whole and streamed, and text_generation at the server's root, with details and streamed."""
    url = world.router(("v-l000", world.tgi("v-l000"))).url
    client = InferenceClient(base_url=url)
    assert client.chat_completion(ASK).choices[0].message.content == "It is 4"
    assert "".join(c.choices[0].delta.content or "" for c in client.chat_completion(ASK, stream=True)) == "It is 4"
    client = InferenceClient(model=url)
    assert client.text_generation("2+2?") == "It is 4"
    assert client.text_generation("2+2?", details=True).details.generated_tokens == 3
    assert "".join(client.text_generation("2+2?", stream=True)) == "It is 4"
    with pytest.raises(ValidationError):
        client.text_generation("2+2?", max_new_tokens=0)


def test_huggingface_hub_s_async_client_works_unchanged(world: World) -> None:
    """The same for asyncio."""
    url = world.router(("v-l000", world.tgi("v-l000"))).url

    async def ask() -> str:
        async with AsyncInferenceClient(base_url=url) as client:
            return str((await client.chat_completion(ASK)).choices[0].message.content)

    assert asyncio.run(ask()) == "It is 4"


def test_our_client_is_openai_s_with_the_decision_on_the_result(world: World) -> None:
    """Chat, completions and streams carry `.dami`; everything else is openai's."""
    low, high = world.tgi("v-l000"), world.tgi("v-l100")
    url = world.router(("v-l000", low), ("v-l100", high)).url
    with DamiClient(url) as client:
        answer = client.chat.completions.create(messages=ASK, reasoning_effort="high")
        assert isinstance(answer, openai.types.chat.ChatCompletion)
        assert (answer.dami.lambda_, answer.dami.variant, answer.dami.estimator) == (1.0, "v-l100", "effort")
        events = client.chat_completion(ASK, stream=True, model="dami:0")
        assert events.dami.variant == "v-l000"
        assert "".join(e.choices[0].delta.content for e in events) == "It is 4"
        assert client.completions.create(prompt="2+2", model="v-l100").dami.attempts == 1
        assert [model.id for model in client.models.list().data] == ["dami", *PRESETS, "v-l000", "v-l100"]
        assert client.route("2+2?", reasoning_effort="none")["variant"] == "v-l000"


def test_our_client_generates_on_tgi(world: World) -> None:
    """text_generation gives a string, or a stream of them, with the decision; TGI's refusal is one sentence."""
    tgi = world.tgi("v-l000")
    with DamiClient(f"{world.router(('v-l000', tgi)).url}/v1/") as client:
        text = client.text_generation("2+2?", max_new_tokens=5)
        assert (text, text.dami.variant) == ("It is 4", "v-l000")
        pieces = client.text_generation("2+2?", stream=True)
        assert (pieces.dami.variant, list(pieces)) == ("v-l000", ["It", " is", " 4"])
        with pytest.raises(FailureError, match="422: Input validation error"):
            client.text_generation("2+2?", max_new_tokens=0)


def test_our_async_client_does_the_same(world: World) -> None:
    """Awaited: chat, streams and text generation, with the decision."""
    url = world.router(("v-l000", world.tgi("v-l000"))).url

    async def ask() -> list[str]:
        async with AsyncDamiClient(url) as client:
            whole = await client.chat.completions.create(messages=ASK)
            events = await client.chat_completion(ASK, stream=True)
            streamed = "".join([e.choices[0].delta.content async for e in events])
            text = await client.text_generation("2+2?")
            return [whole.dami.variant, events.dami.variant, text.dami.variant, streamed]

    assert asyncio.run(ask()) == ["v-l000", "v-l000", "v-l000", "It is 4"]


def test_details_are_huggingface_hub_s(world: World) -> None:
    """With details=True, whole and streamed, our client's attributes are those of huggingface_hub's client."""
    url = world.router(("v-l000", world.tgi("v-l000"))).url
    theirs = InferenceClient(model=url)
    with DamiClient(url) as ours:
        asked = {"details": True, "decoder_input_details": True, "max_new_tokens": 3}
        one, other = ours.text_generation("2+2?", **asked), theirs.text_generation("2+2?", **asked)
        assert (one.generated_text, one.dami.variant) == (other.generated_text, "v-l000")
        assert one.details.generated_tokens == other.details.generated_tokens == 3
        assert one.details.finish_reason == other.details.finish_reason
        assert [t.text for t in one.details.tokens] == [t.text for t in other.details.tokens]
        assert [t.logprob for t in one.details.prefill] == [t.logprob for t in other.details.prefill]
        events = ours.text_generation("2+2?", details=True, stream=True)
        assert events.dami.variant == "v-l000"
        mine = list(events)
        others = list(theirs.text_generation("2+2?", details=True, stream=True))
        assert [e.token.text for e in mine] == [e.token.text for e in others]
        assert mine[-1].generated_text == others[-1].generated_text
        assert mine[-1].details.generated_tokens == others[-1].details.generated_tokens
        with pytest.raises(AttributeError, match="has no `seeds`"):
            _ = one.details.seeds


def test_our_async_client_streams_generations(world: World) -> None:
    """Awaited, a stream of text or of events with details; TGI's refusal and an error in it are FailureErrors."""
    tgi = world.tgi("v-l000")
    url = world.router(("v-l000", tgi)).url

    async def ask() -> tuple[list[str], list[int], str]:
        async with AsyncDamiClient(url) as client:
            pieces = await client.text_generation("2+2?", stream=True)
            texts = [piece async for piece in pieces]
            events = await client.text_generation("2+2?", stream=True, details=True)
            ids = [event.token.id async for event in events]
            whole = await client.text_generation("2+2?", details=True)
            with pytest.raises(FailureError, match="422"):
                await client.text_generation("2+2?", stream=True, max_new_tokens=0)
            return [pieces.dami.variant, *texts], ids, whole.details.finish_reason

    assert asyncio.run(ask()) == (["v-l000", "It", " is", " 4"], [0, 1, 2], "length")


def test_a_stream_that_is_left_ends_at_the_server(world: World) -> None:
    """Breaking out of a stream, sync or async, ends the call: nobody is counted as inside any more."""
    client = world.router(("v-l000", world.upstream("v-l000")), ("v-l100", world.tgi("v-l100")))

    async def leave() -> None:
        async with AsyncDamiClient(client.url) as asynchronous:
            stream = await asynchronous.text_generation("2+2?", stream=True)
            async for _ in stream:
                break
            await stream.close()

    asyncio.run(leave())
    with DamiClient(client.url) as synchronous:
        stream = synchronous.text_generation("2+2?", stream=True)
        assert next(iter(stream)) == "It"
        stream.close()
    until(lambda: client.app.admission.inside == 0)


def test_our_client_sends_its_key(world: World) -> None:
    """On OpenAI's routes and on TGI's."""
    tgi = world.tgi("v-l000")
    url = world.router(("v-l000", tgi), extra="api_keys_env: K", environment={"K": "sk-1"}).url
    with DamiClient(url, api_key="sk-1") as client:
        assert client.text_generation("x") == client.chat_completion(ASK).choices[0].message.content
    with DamiClient(url) as stranger, pytest.raises(openai.AuthenticationError):
        stranger.chat_completion(ASK)


def test_the_router_works_in_process(world: World) -> None:
    """`Router` decides without a proxy, and says the same."""
    from fakes.world import router_yml

    low, high = world.pair()
    config = parse_config(router_yml(("v-l000", low), ("v-l100", high)), {})

    async def route() -> str:
        async with Router(config) as router:
            return json.dumps((await router.route("2+2?", effort="high")).as_dict())

    assert json.loads(world.loop.run(route()))["variant"] == "v-l100"


def test_everything_that_the_package_offers_is_there() -> None:
    """Each public name can be imported, and nothing else is promised."""
    assert all(hasattr(dami_router, name) for name in dami_router.__all__)
    with pytest.raises(AttributeError):
        _ = dami_router.nothing
