"""Clients of a running proxy that tell which variant answered, and why.

`DamiClient` is the `openai` client with one thing added: a completion, or a stream of one, has
`.dami`, the decision. It also has `chat_completion` and `text_generation` as huggingface_hub's
`InferenceClient` has them. `AsyncDamiClient` is the same for asyncio. Any other client works too:
the decision is in the reply's headers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dami_router.errors import FailureError

try:
    import httpx2 as httpx
    from openai import AsyncOpenAI, OpenAI
except ImportError as error:
    raise FailureError(f"DamiClient needs {error.name}", hint="pip install 'dami-router[client]'") from None

__all__ = ["AsyncDamiClient", "DamiClient", "RoutedBy", "Text", "TextStream"]

_PATIENCE = httpx.Timeout(600.0, connect=5.0)


@dataclass(frozen=True)
class RoutedBy:
    """The decision behind an answer, from its headers: λ in [0, 1], times in milliseconds."""

    lambda_: float
    variant: str
    estimator: str
    route_ms: float
    attempts: int

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> RoutedBy | None:
        """Read a reply's headers; None where it does not come from the proxy."""
        try:
            return cls(
                float(headers["x-dami-lambda"]),
                headers["x-dami-variant"],
                headers["x-dami-estimator"],
                float(headers["x-dami-route-ms"]),
                int(headers["x-dami-attempts"]),
            )
        except (KeyError, ValueError):
            return None


class Text(str):
    """Generated text, with the decision."""

    dami: RoutedBy | None = None


@dataclass
class TextStream:
    """Generated text as it comes, with the decision; iterate once."""

    dami: RoutedBy | None
    _pieces: Iterator[str]

    def __iter__(self) -> Iterator[str]:
        return self._pieces


class _Creates:
    """`create` of one of openai's resources, whose results carry the decision."""

    def __init__(self, resource: Any) -> None:
        self._resource = resource

    def create(self, *, model: str = "dami", **arguments: Any) -> Any:
        """Ask, with the arguments of openai's `create`; `model` is `dami`, `dami:0.5` or a variant's id."""
        return _with_decision(self._resource.with_raw_response.create(model=model, **arguments))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._resource, name)


class _AsyncCreates(_Creates):
    async def create(self, *, model: str = "dami", **arguments: Any) -> Any:
        """Ask, with the arguments of openai's `create`."""
        return _with_decision(await self._resource.with_raw_response.create(model=model, **arguments))


class _Chat:
    def __init__(self, chat: Any, completions: _Creates) -> None:
        self._chat, self.completions = chat, completions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chat, name)


class DamiClient:
    """The openai client for a proxy at `base_url` (with or without `/v1`); results have `.dami`.

    `options` are those of `openai.OpenAI`. Its other attributes are there unchanged.
    """

    def __init__(self, base_url: str = "http://127.0.0.1:8000", *, api_key: str | None = None, **options: Any) -> None:
        root = _root(base_url)
        self._openai = OpenAI(base_url=f"{root}/v1", api_key=api_key or "unused", **options)
        self._http = httpx.Client(base_url=root, headers=_authorised(api_key), timeout=_PATIENCE)
        self.completions = _Creates(self._openai.completions)
        self.chat = _Chat(self._openai.chat, _Creates(self._openai.chat.completions))

    def chat_completion(self, messages: list[Any], *, model: str = "dami", **arguments: Any) -> Any:
        """Chat, as huggingface_hub's `InferenceClient.chat_completion`."""
        return self.chat.completions.create(messages=messages, model=model, **arguments)

    def text_generation(self, prompt: str, *, stream: bool = False, **parameters: Any) -> Text | TextStream:
        """Generate on TGI, as huggingface_hub's `InferenceClient.text_generation` without details.

        `parameters` are TGI's. Raises FailureError with the server's message.
        """
        body = {"inputs": prompt, "parameters": parameters}
        if not stream:
            return _text(self._http.post("/generate", json=body))
        request = self._http.build_request("POST", "/generate_stream", json=body)
        reply = self._http.send(request, stream=True)
        if reply.status_code != 200:
            reply.read()
            raise _refused(reply)
        return TextStream(RoutedBy.of(reply.headers), _pieces(reply))

    def route(self, query: str, **fields: Any) -> dict[str, Any]:
        """Return the decision on a query without generating."""
        body = {"messages": [{"role": "user", "content": query}], **fields}
        reply = self._http.post("/v1/route", json=body)
        if reply.status_code != 200:
            raise _refused(reply)
        return dict(reply.json())

    def close(self) -> None:
        """Close the connections."""
        self._openai.close()
        self._http.close()

    def __enter__(self) -> DamiClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._openai, name)


class AsyncDamiClient:
    """`DamiClient` for asyncio: `create`, `chat_completion` and `text_generation` are awaited."""

    def __init__(self, base_url: str = "http://127.0.0.1:8000", *, api_key: str | None = None, **options: Any) -> None:
        root = _root(base_url)
        self._openai = AsyncOpenAI(base_url=f"{root}/v1", api_key=api_key or "unused", **options)
        self._http = httpx.AsyncClient(base_url=root, headers=_authorised(api_key), timeout=_PATIENCE)
        self.completions = _AsyncCreates(self._openai.completions)
        self.chat = _Chat(self._openai.chat, _AsyncCreates(self._openai.chat.completions))

    async def chat_completion(self, messages: list[Any], *, model: str = "dami", **arguments: Any) -> Any:
        """Chat, as huggingface_hub's `AsyncInferenceClient.chat_completion`."""
        return await self.chat.completions.create(messages=messages, model=model, **arguments)

    async def text_generation(self, prompt: str, **parameters: Any) -> Text:
        """Generate on TGI, not streamed; raises FailureError with the server's message."""
        return _text(await self._http.post("/generate", json={"inputs": prompt, "parameters": parameters}))

    async def close(self) -> None:
        """Close the connections."""
        await self._openai.close()
        await self._http.aclose()

    async def __aenter__(self) -> AsyncDamiClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._openai, name)


def _root(base_url: str) -> str:
    return base_url.rstrip("/").removesuffix("/v1")


def _authorised(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def _with_decision(raw: Any) -> Any:
    result = raw.parse()
    result.dami = RoutedBy.of(raw.headers)
    return result


def _text(reply: httpx.Response) -> Text:
    if reply.status_code != 200:
        raise _refused(reply)
    text = Text(reply.json()["generated_text"])
    text.dami = RoutedBy.of(reply.headers)
    return text


def _pieces(reply: httpx.Response) -> Iterator[str]:
    try:
        for line in reply.iter_lines():
            if line.startswith("data:"):
                event = json.loads(line[5:])
                if "error" in event:
                    raise FailureError(f"the stream broke off: {event['error']}")
                if not event["token"].get("special"):
                    yield event["token"]["text"]
    finally:
        reply.close()


def _refused(reply: httpx.Response) -> FailureError:
    try:
        error = reply.json()["error"]
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, LookupError, TypeError):
        message = reply.text[:300]
    return FailureError(f"status {reply.status_code}: {message}")
