"""Clients of a running proxy that report which variant answered, and why.

`DamiClient` is the `openai` client with one thing added: a completion, or a stream of one, has
`.dami`, the decision. It also has `chat_completion` and `text_generation` as huggingface_hub's
`InferenceClient` has them. `AsyncDamiClient` is the same for asyncio. Any other client works too:
the decision is in the reply's headers.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dami_router.errors import FailureError

try:
    import httpx2 as httpx
    from openai import AsyncOpenAI, OpenAI
except ImportError as error:
    raise FailureError(f"DamiClient needs {error.name}", hint="pip install 'dami-router[client]'") from None

__all__ = ["AsyncDamiClient", "AsyncTextStream", "DamiClient", "Generated", "RoutedBy", "Text", "TextStream"]

_PATIENCE = httpx.Timeout(600.0, connect=5.0)


@dataclass(frozen=True)
class RoutedBy:
    """The decision behind an answer, from its headers: λ in [0, 1], times in milliseconds."""

    lambda_: float
    variant: str
    estimator: str
    route_ms: float
    attempts: int
    cause: str = ""

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> RoutedBy | None:
        """Read a reply's headers; None where the reply does not come from the proxy."""
        try:
            return cls(
                float(headers["x-dami-lambda"]),
                headers["x-dami-variant"],
                headers["x-dami-estimator"],
                float(headers["x-dami-route-ms"]),
                int(headers["x-dami-attempts"]),
                headers.get("x-dami-cause", ""),
            )
        except (KeyError, ValueError):
            return None


class Text(str):
    """Generated text, with the decision."""

    dami: RoutedBy | None = None


class Generated(dict[str, Any]):
    """TGI's details of a generation, or an event of its stream: a mapping whose keys are attributes too."""

    dami: RoutedBy | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the server's reply has no `{name}`") from None


@dataclass
class TextStream:
    """Pieces of text as they arrive (events, with details), with the decision; iterate once, or close."""

    dami: RoutedBy | None
    _reply: httpx.Response
    _details: bool

    def __iter__(self) -> Iterator[Any]:
        try:
            for line in self._reply.iter_lines():
                yield from _pieces(line, self._details)
        finally:
            self.close()

    def close(self) -> None:
        """End the call; the server stops generating."""
        self._reply.close()


@dataclass
class AsyncTextStream:
    """`TextStream` for asyncio."""

    dami: RoutedBy | None
    _reply: httpx.Response
    _details: bool

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for line in self._reply.aiter_lines():
                for piece in _pieces(line, self._details):
                    yield piece
        finally:
            await self.close()

    async def close(self) -> None:
        """End the call; the server stops generating."""
        await self._reply.aclose()


class _Creates:
    """`create` of one of openai's resources; its results carry the decision."""

    def __init__(self, resource: Any) -> None:
        self._resource = resource

    def create(self, *, model: str = "dami", **arguments: Any) -> Any:
        """Send a request with the arguments of openai's `create`; `model` is `dami`, `dami:0.5` or a variant's id."""
        return _with_decision(self._resource.with_raw_response.create(model=model, **arguments))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._resource, name)


class _AsyncCreates(_Creates):
    async def create(self, *, model: str = "dami", **arguments: Any) -> Any:
        """Send a request with the arguments of openai's `create`."""
        return _with_decision(await self._resource.with_raw_response.create(model=model, **arguments))


class _Chat:
    def __init__(self, chat: Any, completions: _Creates) -> None:
        self._chat, self.completions = chat, completions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chat, name)


class DamiClient:
    """The openai client for a proxy at `base_url` (with or without `/v1`); results have `.dami`.

    `options` are those of `openai.OpenAI`. Its other attributes are unchanged.
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

    def text_generation(
        self, prompt: str, *, details: bool = False, stream: bool = False, **parameters: Any
    ) -> Text | Generated | TextStream:
        """Generate on TGI, as huggingface_hub's `InferenceClient.text_generation`.

        With `details`, what TGI says of the generation: `generated_text` and `details`, or events of a
        stream with `token`. `parameters` are TGI's. Raises FailureError with the server's message.
        """
        path, body = _generation(prompt, details, stream, parameters)
        if not stream:
            return _text(self._http.post(path, json=body), details)
        reply = self._http.send(self._http.build_request("POST", path, json=body), stream=True)
        if reply.status_code != 200:
            reply.read()
            raise _refused(reply)
        return TextStream(RoutedBy.of(reply.headers), reply, details)

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

    async def text_generation(
        self, prompt: str, *, details: bool = False, stream: bool = False, **parameters: Any
    ) -> Text | Generated | AsyncTextStream:
        """Generate on TGI, as `DamiClient.text_generation`; a stream is iterated with `async for`."""
        path, body = _generation(prompt, details, stream, parameters)
        if not stream:
            return _text(await self._http.post(path, json=body), details)
        reply = await self._http.send(self._http.build_request("POST", path, json=body), stream=True)
        if reply.status_code != 200:
            await reply.aread()
            raise _refused(reply)
        return AsyncTextStream(RoutedBy.of(reply.headers), reply, details)

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


def _generation(prompt: str, details: bool, stream: bool, parameters: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    asked = {**parameters, **({"details": True} if details else {})}
    return "/generate_stream" if stream else "/generate", {"inputs": prompt, "parameters": asked}


def _text(reply: httpx.Response, details: bool) -> Text | Generated:
    if reply.status_code != 200:
        raise _refused(reply)
    data = reply.json(object_hook=Generated)
    text: Text | Generated = data if details else Text(data["generated_text"])
    text.dami = RoutedBy.of(reply.headers)
    return text


def _pieces(line: str, details: bool) -> Iterator[str | Generated]:
    """Yield the content of one line of TGI's stream: nothing, a token's text, or its event."""
    if not line.startswith("data:"):
        return
    event = json.loads(line[5:], object_hook=Generated)
    if "error" in event:
        raise FailureError(f"the stream broke off: {event['error']}")
    if details:
        yield event
    elif not event["token"].get("special"):
        yield event["token"]["text"]


def _refused(reply: httpx.Response) -> FailureError:
    try:
        error = reply.json()["error"]
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, LookupError, TypeError):
        message = reply.text[:300]
    return FailureError(f"status {reply.status_code}: {message}")
