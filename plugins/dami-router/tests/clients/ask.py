"""Ask a proxy with one real client and print what it understood, as JSON: `python ask.py CLIENT URL`.

Runs in the client's own environment, so it imports nothing of this project.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

SAID = [{"role": "user", "content": "2+2?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": PARAMETERS}}
Found = dict[str, Any]


def openai(url: str) -> Found:
    """Chat, stream and tools of the openai package; the Responses API where the version has it."""
    from openai import NotFoundError, OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="sesame", max_retries=0)
    chat = client.chat.completions.create(model="dami", messages=SAID)
    pieces = client.chat.completions.create(model="dami", messages=SAID, stream=True)
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    called = client.chat.completions.create(model="dami", messages=SAID, tools=[TOOL])
    call = called.choices[0].message.tool_calls[0].function
    try:
        client.chat.completions.create(model="gpt-4o", messages=SAID)
        refused = "no"
    except NotFoundError as error:
        refused = error.code
    found = {
        "chat": chat.choices[0].message.content, "usage": chat.usage.completion_tokens, "stream": streamed,
        "tool": [call.name, json.loads(call.arguments)], "refused": refused,
        "models": [model.id for model in client.models.list()], "model": client.models.retrieve("dami").id,
    }  # fmt: skip
    if hasattr(client, "responses"):
        reply = client.responses.create(model="dami", input="2+2?", reasoning={"effort": "low"})
        events = client.responses.create(model="dami", input="2+2?", stream=True)
        found["responses"] = [reply.output_text, [event.type for event in events]]
    return found


def anthropic(url: str) -> Found:
    """Messages, stream and tools of the anthropic package."""
    from anthropic import Anthropic, NotFoundError

    client = Anthropic(base_url=url, api_key="sesame", max_retries=0)
    message = client.messages.create(model="dami", max_tokens=9, messages=SAID)
    with client.messages.stream(model="dami", max_tokens=9, messages=SAID) as stream:
        streamed = "".join(stream.text_stream)
    tool = {"name": "weather", "description": "d", "input_schema": PARAMETERS}
    called = client.messages.create(model="dami", max_tokens=9, messages=SAID, tools=[tool])
    try:
        client.messages.create(model="none", max_tokens=9, messages=SAID)
        refused = "no"
    except NotFoundError as error:
        refused = error.body["error"]["type"]
    return {
        "chat": message.content[0].text, "usage": message.usage.output_tokens, "stream": streamed,
        "tool": [called.content[0].name, called.content[0].input], "refused": refused,
    }  # fmt: skip


def langchain(url: str) -> Found:
    """ChatOpenAI of langchain-openai: invoke, stream, bind_tools."""
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=f"{url}/v1", api_key="sesame", model="dami", max_retries=0)
    reply = model.invoke("2+2?")
    called = model.bind_tools([TOOL]).invoke("2+2?").tool_calls[0]
    return {
        "chat": reply.content, "usage": reply.usage_metadata["output_tokens"],
        "stream": "".join(str(piece.content) for piece in model.stream("2+2?")),
        "tool": [called["name"], called["args"]],
    }  # fmt: skip


def litellm(url: str) -> Found:
    """LiteLLM's SDK: completion, stream and tools."""
    import litellm as package

    common: dict[str, Any] = {"model": "openai/dami", "api_base": f"{url}/v1", "api_key": "sesame", "messages": SAID}
    reply = package.completion(**common)
    streamed = "".join(piece.choices[0].delta.content or "" for piece in package.completion(**common, stream=True))
    call = package.completion(**common, tools=[TOOL]).choices[0].message.tool_calls[0].function
    return {
        "chat": reply.choices[0].message.content, "usage": reply.usage.completion_tokens, "stream": streamed,
        "tool": [call.name, json.loads(call.arguments)],
    }  # fmt: skip


def huggingface_hub(url: str) -> Found:
    """InferenceClient: chat, stream and tools, and TGI's own generation at the root."""
    from huggingface_hub import InferenceClient

    client = InferenceClient(base_url=url, api_key="sesame")
    chat = client.chat_completion(SAID, model="dami")
    pieces = client.chat_completion(SAID, model="dami", stream=True)
    call = client.chat_completion(SAID, model="dami", tools=[TOOL]).choices[0].message.tool_calls[0].function
    return {
        "chat": chat.choices[0].message.content, "usage": chat.usage.completion_tokens,
        "stream": "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices),
        "tool": [call.name, _arguments(call.arguments)],
    }  # fmt: skip


def huggingface_hub_tgi(url: str) -> Found:
    """InferenceClient.text_generation, whole, with details and streamed, on TGI's root."""
    from huggingface_hub import InferenceClient

    client = InferenceClient(model=url, token="sesame")
    details = client.text_generation("2+2?", details=True)
    return {
        "chat": client.text_generation("2+2?"), "usage": details.details.generated_tokens,
        "stream": "".join(client.text_generation("2+2?", stream=True)),
    }  # fmt: skip


def text_generation(url: str) -> Found:
    """text-generation 0.7: generate, streamed and not, and its chat."""
    from text_generation import Client

    client = Client(url, headers={"authorization": "Bearer sesame"})
    whole = client.generate("2+2?")
    return {
        "chat": whole.generated_text, "usage": whole.details.generated_tokens,
        "stream": "".join(piece.token.text for piece in client.generate_stream("2+2?")),
    }  # fmt: skip


def _arguments(given: Any) -> Any:
    return json.loads(given) if isinstance(given, str) else given


CLIENTS: dict[str, Callable[[str], Found]] = {
    "openai": openai, "anthropic": anthropic, "langchain": langchain, "litellm": litellm,
    "huggingface_hub": huggingface_hub, "huggingface_hub_tgi": huggingface_hub_tgi, "text_generation": text_generation,
}  # fmt: skip

if __name__ == "__main__":
    sys.stdout.write(json.dumps(CLIENTS[sys.argv[1]](sys.argv[2])) + "\n")
