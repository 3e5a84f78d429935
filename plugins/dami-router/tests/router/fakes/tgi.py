"""A strict Text Generation Inference: it refuses what TGI refuses, and has its traps.

By TGI 3.3: any `model` is served and echoed; errors of a stream come with status 200, without
`[DONE]`; prompt log-probabilities are empty without --enable-prefill-logprobs, and never come in
a stream; `max_new_tokens: 0`, a `stop` that is no list and a `logit_bias` that is no array are 422.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fakes.upstream import Call, Upstream, send

WORDS = ("It", " is", " 4")


class FakeTgi(Upstream):
    """TGI serving one model. `fail_stream` makes streams begin with an error."""

    def __init__(self, model_id: str, sha: str | None = None, *, prefill: bool = True, template: bool = True) -> None:
        super().__init__(self._generate)
        self.model_id, self.sha, self.prefill, self.template = model_id, sha, prefill, template
        self.fail_stream = False

    def info(self) -> dict[str, Any]:
        """Return /info."""
        return {
            "model_id": self.model_id, "model_sha": self.sha, "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": 128, "max_best_of": 2, "max_stop_sequences": 4, "max_input_tokens": 1024,
            "max_total_tokens": 2048, "validation_workers": 2, "max_client_batch_size": 4,
            "router": "text-generation-router", "version": "3.3.6-dev0", "sha": None, "docker_label": None,
        }  # fmt: skip

    async def get(self, call: Call, writer: asyncio.StreamWriter) -> None:
        if call.path == "/info":
            await send(writer, 200, self.info())
        elif call.path == "/health":
            await send(writer, 200, b"")
        elif call.path == "/v1/models":
            entry = {"id": self.model_id, "object": "model", "created": 0, "owned_by": self.model_id}
            await send(writer, 200, {"object": "list", "data": [entry]})
        else:
            await send(writer, 404, b"")

    async def _generate(self, call: Call, writer: asyncio.StreamWriter) -> None:
        routes = {
            "/generate": self._native, "/generate_stream": self._native, "/": self._native,
            "/v1/chat/completions": self._chat, "/v1/completions": self._completions,
        }  # fmt: skip
        if call.path not in routes:
            await send(writer, 404, b"")
            return
        try:
            data = call.json
        except ValueError:
            await send(writer, 400, b"Failed to parse the request body as JSON")
            return
        refusal = refused(call.path, data)
        if refusal is not None:
            await send(writer, 422, {"error": f"Input validation error: {refusal}", "error_type": "validation"})
            return
        await routes[call.path](call.path, data, writer)

    async def _native(self, path: str, data: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if path == "/generate_stream" or data.get("stream"):
            await self._events(writer, [native_event(i) for i in range(len(WORDS))], done=False)
            return
        parameters = data.get("parameters") or {}
        reply: dict[str, Any] = {"generated_text": "".join(WORDS)}
        if parameters.get("details") or parameters.get("decoder_input_details"):
            reply["details"] = self._details(parameters)
        await send(writer, 200, [reply] if path == "/" else reply)

    def _details(self, parameters: dict[str, Any]) -> dict[str, Any]:
        asked = parameters.get("decoder_input_details") and self.prefill
        prefill = [{"id": 1, "text": "2", "logprob": None}, {"id": 2, "text": "+", "logprob": -0.5}] if asked else []
        found = {"finish_reason": "length", "generated_tokens": 3, "seed": None, "prefill": prefill}
        tokens = [{"id": i, "text": w, "logprob": -0.1, "special": False} for i, w in enumerate(WORDS)]
        top = {"top_tokens": [tokens[:1] for _ in WORDS]} if parameters.get("top_n_tokens") else {}
        return {**found, "tokens": tokens, **top}

    async def _chat(self, path: str, data: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if not self.template:
            await send(writer, 422, {"error": "Template error: template not found", "error_type": "template_error"})
            return
        base = {"id": "", "created": 1, "model": data.get("model") or self.model_id, "system_fingerprint": "3.3.6-dev0"}
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        if data.get("stream"):
            deltas = [{"role": "assistant", "content": word} for word in WORDS]
            events = [
                {**base, "object": "chat.completion.chunk", "usage": None,
                 "choices": [{"index": 0, "delta": d, "logprobs": None, "finish_reason": "stop" if i == 2 else None}]}
                for i, d in enumerate(deltas)
            ]  # fmt: skip
            await self._events(writer, [f"data: {json.dumps(e)}\n\n".encode() for e in events], done=True)
            return
        message = {"role": "assistant", "content": "".join(WORDS)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        await send(writer, 200, {**base, "object": "chat.completion", "choices": [choice], "usage": usage})

    async def _completions(self, path: str, data: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        # Whatever `logprobs` asks for, there are none.
        choice = {"index": 0, "text": "".join(WORDS), "logprobs": None, "finish_reason": "length"}
        usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
        base = {"id": "", "created": 1, "model": data.get("model") or self.model_id, "system_fingerprint": "3.3.6-dev0"}
        await send(writer, 200, {**base, "object": "text_completion", "choices": [choice], "usage": usage})

    async def _events(self, writer: asyncio.StreamWriter, events: list[bytes], *, done: bool) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        if self.fail_stream:
            error = {"error": "Request failed during generation: out of memory", "error_type": "generation"}
            events, done = [f"data:{json.dumps(error)}\n\n".encode()], False
        for event in [*events, *([b"data: [DONE]\n\n"] if done else [])]:
            writer.write(b"%x\r\n" % len(event) + event + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def native_event(index: int) -> bytes:
    """Return one event of /generate_stream, as TGI spaces it: no blank behind `data:`."""
    token = {"id": index, "text": WORDS[index], "logprob": -0.1, "special": False}
    last = index == len(WORDS) - 1
    details = {"finish_reason": "length", "generated_tokens": 3, "seed": None, "input_length": 1} if last else None
    text = "".join(WORDS) if last else None
    return (
        f"data:{json.dumps({'index': index, 'token': token, 'generated_text': text, 'details': details})}\n\n".encode()
    )


def refused(path: str, data: Any) -> str | None:
    """Say what TGI refuses in a request; None where it takes it."""
    if not isinstance(data, dict):
        return "expected a map"
    if path.startswith("/v1/"):
        if path.endswith("chat/completions") and not isinstance(data.get("messages"), list):
            return "missing field `messages`"
        if path == "/v1/completions" and not isinstance(data.get("prompt"), str | list):
            return "missing field `prompt`"
        if not isinstance(data.get("stop"), list | None):
            return "stop: expected a sequence"
        if not isinstance(data.get("logit_bias"), list | None):
            return "logit_bias: expected a sequence"
        return "`max_new_tokens` must be strictly positive" if data.get("max_tokens") == 0 else None
    if not isinstance(data.get("inputs"), str):
        return "missing field `inputs`"
    parameters = data.get("parameters") or {}
    if parameters.get("max_new_tokens") == 0:
        return "`max_new_tokens` must be strictly positive"
    if not isinstance(parameters.get("stop"), list | None):
        return "stop: expected a sequence"
    if (parameters.get("top_n_tokens") or 0) > 5:
        return "`top_n_tokens` must be >= 0 and <= 5"
    if parameters.get("decoder_input_details") and (path == "/generate_stream" or data.get("stream")):
        return "`decoder_input_details` is not supported when streaming tokens"
    return None
