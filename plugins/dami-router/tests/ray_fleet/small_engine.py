"""A small server in the place of Ray Serve LLM: one variant of the lab pair on a CPU, with OpenAI's routes.

`build` takes the arguments of `ray.serve.llm:build_openai_app`, so that a Serve configuration differs in one word.
Replies name the process that wrote them (`system_fingerprint`), so that a test can kill it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

PAUSE_S = 0.05
"""Between two tokens, so that requests overlap."""


@serve.deployment
class SmallEngine:
    """One replica of one variant, with greedy answers by Transformers."""

    def __init__(self, model_id: str, folder: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self._id = model_id
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder)

    async def __call__(self, request: Request) -> Response:
        if request.method == "GET":
            return JSONResponse({"object": "list", "data": [{"id": self._id, "object": "model"}]})
        body = await request.json()
        pieces = self._pieces(body["messages"], body.get("max_tokens") or 64)
        if body.get("stream"):
            return StreamingResponse(self._events(pieces), media_type="text/event-stream")
        text = "".join([piece async for piece in pieces])
        return JSONResponse(self._reply({"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}))

    async def _pieces(self, messages: list[dict[str, str]], limit: int) -> AsyncIterator[str]:
        import torch

        ids = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        for _ in range(limit):
            with torch.inference_mode():
                best = int(self._model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if best == self._model.config.eos_token_id or best == self._tokenizer.eos_token_id:
                return
            ids.append(best)
            await asyncio.sleep(PAUSE_S)
            yield self._tokenizer.decode([best])

    async def _events(self, pieces: AsyncIterator[str]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            yield b"data: " + json.dumps(self._reply({"delta": {"content": piece}})).encode() + b"\n\n"
        yield b"data: " + json.dumps(self._reply({"delta": {}, "finish_reason": "stop"})).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"

    def _reply(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {"model": self._id, "system_fingerprint": str(os.getpid()), "choices": [{"index": 0, **choice}]}


def build(args: dict[str, Any]) -> Any:
    """Return the application of one variant, whose folder is in the family at LAB_FAMILY."""
    (config,) = args["llm_configs"]
    model = config["model_loading_config"]["model_id"]
    return SmallEngine.options(
        num_replicas=config["deployment_config"]["num_replicas"],
        max_ongoing_requests=config["deployment_config"]["max_ongoing_requests"],
        ray_actor_options={"num_cpus": 0.1},
    ).bind(model, str(Path(os.environ["LAB_FAMILY"]) / model))
