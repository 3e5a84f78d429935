"""The router's calls, answered by the engine in this process instead of over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from dami_merge.live import Completion, Engine
from dami_merge.live_server.engine_request import EngineRequest, Form, chat_tokens, texts_of, tokens_of
from dami_merge.live_server.fields import BadFieldError, Fields, TooLongError
from dami_merge.live_server.hidden_states import embeddings_reply, read_embeddings
from dami_merge.live_server.jobs import EngineThread, Job, Told
from dami_merge.live_server.known_fields import TOKENIZE
from dami_merge.live_server.openai_form import read_chat, read_completion
from dami_merge.live_server.tgi_form import read_generate
from dami_merge.live_server.token_texts import Written
from dami_router.config.router_schema import Timeouts
from dami_router.errors import DamiError, MisuseError
from dami_router.messages.pinning import pinned
from dami_router.messages.request import Request, Shape
from dami_router.proxy.wire import HttpError, error_body
from dami_router.upstream.fleet import Replica
from dami_router.upstream.reply import BrokenError, Reply

__all__ = ["EngineCalls"]

T = TypeVar("T")
_READERS: Mapping[str, Callable[..., EngineRequest]] = {
    "/v1/chat/completions": read_chat, "/v1/completions": read_completion,
    **{path: partial(read_generate, path=path) for path in ("/generate", "/generate_stream", "/")},
}  # fmt: skip
_LARGE = 1 << 16
"""Bodies of more bytes are read in a thread, because tokenizing them takes a while."""
_JSON = ((b"content-type", b"application/json"),)
_EVENTS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))


class EngineCalls:
    """Answers the router's calls to its one backend. `describe` returns the content of `/info`."""

    def __init__(self, engine: Engine, timeouts: Timeouts, describe: Callable[[], Mapping[str, Any]]) -> None:
        self.thread = EngineThread(engine)
        self._engine, self._timeouts, self._describe = engine, timeouts, describe

    async def open(self) -> None:
        """Start the engine's thread."""
        self.thread.start()

    async def close(self) -> None:
        """Stop the thread; running requests are dropped."""
        await asyncio.to_thread(self.thread.stop)

    async def send(self, replica: Replica, request: Request, lambda_: float, *, fresh: bool = False) -> Reply:  # noqa: ARG002
        """Answer a request at λ: completely, or as a stream once its first token is there."""
        shape = request.shape
        try:
            asked = await self._read(request.path, request.body, lambda_)
            job = self.thread.submit(asked.generations)
            try:
                return await self._begin(asked, job, stream=asked.stream)
            except BaseException:
                job.cancel()
                raise
        except HttpError as error:
            return _Whole(error.status, _JSON, _json(error_body(shape, error)))
        except (BadFieldError, DamiError) as error:
            found = _refusal(error, shape)
            return _Whole(found.status, _JSON, _json(error_body(shape, found)))

    async def _begin(self, asked: EngineRequest, job: Job, *, stream: bool) -> Reply:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeouts.total
        if not stream:
            answers = await _within(job.completions(), self._timeouts.total)
            return _Whole(200, _JSON, _json(asked.form.whole(_good(answers))))
        told = await _within(job.next(), self._timeouts.first_byte)
        for _, event in told:
            if event.finish_reason == "error":
                raise HttpError(503, event.error or "out of memory", code="out_of_memory")
        return _Stream(asked.form, job, told, end)

    async def _read(self, path: str, body: bytes, lambda_: float) -> EngineRequest:
        read = _READERS.get(path)
        if read is None:
            raise HttpError(404, "this server has no such path", code="not_found")
        return await self._apart(body, lambda: read(json.loads(body), self._engine, lambda_))

    async def _apart(self, body: bytes, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work) if len(body) > _LARGE else work()

    async def tokenize(self, body: bytes) -> tuple[int, Any]:
        """Answer `/tokenize` as vLLM does, for a prompt or a conversation."""
        try:
            return 200, await self._apart(body, lambda: self._tokens(_object(body)))
        except (BadFieldError, MisuseError) as error:
            found = _refusal(error, "openai")
            return found.status, error_body("openai", found)

    async def embeddings(self, body: bytes) -> tuple[int, Any]:
        """Answer `/v1/embeddings`: the hidden state of each prompt."""
        try:
            data = _object(body)
            asked = await self._apart(body, lambda: read_embeddings(data, self._engine))
            job = self.thread.submit(asked)
            try:
                answers = _good(await _within(job.completions(), self._timeouts.total))
            except BaseException:
                job.cancel()
                raise
            return 200, embeddings_reply(asked, answers, str(data.get("model") or self._engine.name))
        except HttpError as error:
            return error.status, error_body("openai", error)
        except (BadFieldError, DamiError) as error:
            found = _refusal(error, "openai")
            return found.status, error_body("openai", found)

    def _tokens(self, data: Mapping[str, Any]) -> dict[str, Any]:
        fields = Fields(data)
        fields.accept(TOKENIZE)
        if fields.has("messages"):
            if fields.flag("add_special_tokens"):
                raise BadFieldError("`add_special_tokens` is not supported with `messages`: the template adds them")
            ids = chat_tokens(self._engine, fields, _lambda_of(fields))
        else:
            ids = tokens_of(self._engine, fields.text("prompt"), fields.flag("add_special_tokens", True))
        reply: dict[str, Any] = {"count": len(ids), "max_model_len": self._engine.max_length, "tokens": ids}
        written = Written(texts_of(self._engine).tokenizer)
        reply["token_strs"] = [written.text([id]) for id in ids] if fields.flag("return_token_strs") else None
        return reply

    async def get(self, replica: Replica, path: str, timeout: float) -> tuple[int, Any]:  # noqa: ARG002
        """Answer a probe."""
        if path != "/info":
            return 404, None
        return (200, dict(self._describe())) if self.thread.alive else (503, None)

    async def post(
        self,
        replica: Replica,
        path: str,
        data: Mapping[str, Any],
        timeout: float,
        *,
        fresh: bool = True,  # noqa: ARG002
    ) -> tuple[int, Any]:
        """Answer an estimator's call."""
        body = _json(data)
        if path == "/tokenize":
            return await self.tokenize(body)
        if path == "/v1/embeddings":
            async with asyncio.timeout(timeout):
                return await self.embeddings(body)
        lambda_ = _lambda_of(Fields(data))
        request = Request(path, "openai", body, None, stream=False, text="")
        async with asyncio.timeout(timeout):
            reply = await self.send(replica, request, lambda_)
        return reply.status, json.loads(reply.first)


@dataclass(frozen=True)
class _Whole:
    """A complete reply."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    first: bytes
    stream: bool = False

    async def rest(self) -> AsyncIterator[bytes]:
        return
        yield b""

    def close(self) -> None:
        """Do nothing: the reply is complete."""


class _Stream:
    """A streamed reply whose first token has arrived."""

    status = 200
    headers: Sequence[tuple[bytes, bytes]] = _EVENTS
    stream = True

    def __init__(self, form: Form, job: Job, told: list[Told], end: float) -> None:
        self._form, self._job, self._end = form, job, end
        self.first = form.opening() + self._said(told)

    async def rest(self) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout_at(self._end):
                    told = await self._job.next()
            except TimeoutError:
                raise BrokenError("took too long") from None
            except DamiError as error:
                raise BrokenError(f"broke off: {error.message}") from None
            if not told:
                break
            failed = next((event.error for _, event in told if event.finish_reason == "error"), None)
            yield self._said(told)
            if failed:
                raise BrokenError(f"broke off: {failed}")
        yield self._form.closing()

    def _said(self, told: list[Told]) -> bytes:
        return b"".join(self._form.event(i, event) for i, event in told if event.finish_reason != "error")

    def close(self) -> None:
        self._job.cancel()


def _refusal(error: Exception, shape: Shape) -> HttpError:
    status = 500 if isinstance(error, DamiError) and not isinstance(error, MisuseError) else 400
    if status == 400 and shape == "tgi":
        status = 422
    code = "context_length_exceeded" if isinstance(error, TooLongError) else None
    message = error.message if isinstance(error, DamiError) else str(error)
    return HttpError(status, message, code=code)


def _good(answers: Sequence[Completion]) -> Sequence[Completion]:
    for answer in answers:
        if answer.finish_reason == "error":
            raise HttpError(503, answer.error or "out of memory", code="out_of_memory")
    return answers


async def _within(work: Any, seconds: float) -> Any:
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise HttpError(504, f"no answer within {seconds:g} s", code="timeout") from None


def _lambda_of(fields: Fields) -> float:
    lambda_ = pinned(str(fields.data.get("model")))
    return 0.0 if lambda_ is None else lambda_


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise BadFieldError("the body is not a JSON object")
    return data


def _json(data: Any) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
