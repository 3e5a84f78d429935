"""Real client packages against the proxy: each its main call, streamed and not, with tools and errors.

`make test-clients` sets up their environments: versions collide, so there are several.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fakes.upstream import Call, Upstream, chat, chunk, send, stream
from fakes.world import Client, World

ASK = Path(__file__).parents[1] / "clients" / "ask.py"
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
CLIENTS = [
    ("NEW", "openai"), ("OLD", "openai"), ("NEW", "anthropic"), ("NEW", "langchain"), ("LITELLM", "litellm"),
    ("NEW", "huggingface_hub"), ("OLD", "huggingface_hub"),
]  # fmt: skip
pytestmark = pytest.mark.clients


class ManyRoutes(Upstream):
    """An OpenAI-compatible server as vLLM is one: chat with tools, the Responses API, and Anthropic's messages."""

    def __init__(self) -> None:
        super().__init__(self._reply, models={"object": "list", "data": [{"id": "v-l000", "object": "model"}]})

    async def _reply(self, call: Call, writer: asyncio.StreamWriter) -> None:
        body = call.json
        if call.path == "/v1/messages":
            await self._messages(body, call, writer)
        elif call.path == "/v1/responses":
            await self._responses(body, call, writer)
        elif body.get("stream"):
            await stream(chunk("4"), chunk("", "stop"), b"data: [DONE]\n\n")(call, writer)
        else:
            reply = chat()
            if body.get("tools"):
                message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
                reply["choices"][0] |= {"message": message, "finish_reason": "tool_calls"}
            await send(writer, 200, reply)

    async def _messages(self, body: Any, call: Call, writer: asyncio.StreamWriter) -> None:
        content: dict[str, Any] = {"type": "text", "text": "4"}
        if body.get("tools"):
            content = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}}
        message = {
            "id": "m1", "type": "message", "role": "assistant", "model": "v-l000", "content": [content],
            "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 3, "output_tokens": 7},
        }  # fmt: skip
        if not body.get("stream"):
            await send(writer, 200, message)
            return
        events = [
            {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "4"}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
            {"type": "message_stop"},
        ]
        await stream(*map(named, events))(call, writer)

    async def _responses(self, body: Any, call: Call, writer: asyncio.StreamWriter) -> None:
        text = {"type": "output_text", "text": "4", "annotations": []}
        message = {"id": "o1", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
        response = {
            "id": "r1", "object": "response", "created_at": 1, "status": "completed", "model": "v-l000",
            "output": [message], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        }  # fmt: skip
        if not body.get("stream"):
            await send(writer, 200, response)
            return
        kinds = [{"type": "response.created"}, {"type": "response.completed"}]
        await stream(*(named({**k, "sequence_number": i, "response": response}) for i, k in enumerate(kinds)))(
            call, writer
        )


def named(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def asked(environment: str, client: str, proxy: Client) -> dict[str, Any]:
    """Run one client in its environment; skips where there is none."""
    python = os.environ.get(f"DAMI_CLIENTS_{environment}_PYTHON")
    if not python:
        pytest.skip("no environment with the client packages; `make test-clients` makes them")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, ASK, client, proxy.url], capture_output=True, text=True, timeout=300, check=False,
        env={**clean, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(("environment", "client"), CLIENTS)
def test_a_client_gets_what_it_asks_for(world: World, environment: str, client: str) -> None:
    """The answer, its usage, the stream, tool calls and errors are what the client itself understands."""
    extra = "estimator: {fixed: 0}\napi_keys_env: [KEY]"
    proxy = world.router(("v-l000", world.start(ManyRoutes())), extra=extra, environment={"KEY": "sesame"})
    found = asked(environment, client, proxy)
    assert (found["chat"], found["usage"], found["stream"]) == ("4", 7, "4")
    assert found["tool"] == ["weather", {"city": "Paris"}]
    assert found.get("refused") in (None, "model_not_found", "not_found_error")
    if "models" in found:
        assert (found["models"], found["model"]) == (["dami", "v-l000"], "dami")
    if "responses" in found:
        assert found["responses"] == ["4", ["response.created", "response.completed"]]


@pytest.mark.parametrize(
    ("environment", "client"),
    [("NEW", "huggingface_hub_tgi"), ("OLD", "huggingface_hub_tgi"), ("OLD", "text_generation")],
)
def test_a_tgi_client_gets_what_it_asks_for(world: World, environment: str, client: str) -> None:
    """Generations whole, with details and streamed, as TGI's own clients ask for them at the root."""
    proxy = world.router(("v-l000", world.tgi("v-l000")), extra="api_keys_env: [KEY]", environment={"KEY": "sesame"})
    found = asked(environment, client, proxy)
    assert (found["chat"], found["usage"], found["stream"]) == ("It is 4", 3, "It is 4")
