"""vLLM with both endpoints of the lab pair, λ in each request: its routes and refusals, and its prefix cache.

A fake, for tests without vLLM; test_vllm.py runs the same on the real one. As strict as vLLM 0.32: a name that it does
not serve is 404; `vllm_xargs` must be an object of texts, numbers or lists; a `cache_salt` has 1 to 128 characters,
without `@`, `/`, a backslash or NUL. Whatever it cached under a salt it uses again for every request with that salt,
whatever its λ: such a request is answered with the λ of the first, as the real server would without salts.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from dami_merge.lab.tokenizer import encode
from fakes.lab import LabModel, LabVllm, templated
from fakes.upstream import Call, chat, send

DEFAULT = 0.5
"""λ of a request that names none."""


class Asked(NamedTuple):
    """What a request asked for."""

    path: str
    lambda_: object
    salt: object


class LabVllmPair(LabVllm):
    """vLLM serving the lab pair at any λ under one name. `described` changes what /info says of the pair."""

    def __init__(self, name: str = "lab-dami", described: dict[str, Any] | None = None) -> None:
        self.models_at: dict[float, LabModel] = {}
        super().__init__(name, self.at(DEFAULT))
        self.described = {
            "instruct": {"name": "lab/instruct"}, "thinking": {"name": "lab/thinking"}, "path": "uniform",
            "opens_think_from": None,
            "capabilities": {"log_probs": True, "prompt_log_probs": True, "top_n": True, "chat_template": True},
            **(described or {}),
        }  # fmt: skip
        self.asked: list[Asked] = []
        self.cached: dict[tuple[object, tuple[int, ...]], float] = {}

    def at(self, lambda_: float) -> LabModel:
        """Return the merged model of a λ."""
        return self.models_at.setdefault(lambda_, LabModel(lambda_))

    async def get(self, call: Call, writer: asyncio.StreamWriter) -> None:
        if call.path == "/info":
            await send(
                writer, 200, {"model_id": self.name, "max_total_tokens": 256, "engine": "vllm", "live": self.described}
            )
        else:
            await super().get(call, writer)

    async def _answer_post(self, call: Call, writer: asyncio.StreamWriter) -> None:
        data = call.json
        xargs, salt = data.get("vllm_xargs"), data.get("cache_salt")
        if wrong := refusal(xargs, salt):
            await send(writer, 400, {"error": {"message": wrong, "type": "BadRequestError", "code": 400}})
            return
        lambda_ = (xargs or {}).get("lambda", DEFAULT)
        self.asked.append(Asked(call.path, lambda_, salt))
        prompt = _prompt(data)
        if call.path != "/tokenize":
            lambda_ = self.cached.setdefault((salt, tuple(prompt)), lambda_)
        self.model = self.at(lambda_)
        if call.path in ("/v1/responses", "/v1/messages") and data.get("model") == self.name:
            await send(writer, 200, chat(f"λ={lambda_:g}"))
        else:
            await super()._answer_post(call, writer)


def refusal(xargs: object, salt: object) -> str | None:
    """Say what vLLM and its plug-in refuse; None where they take it."""
    if not isinstance(xargs, dict | None):
        return "vllm_xargs: Input should be a valid dictionary"
    lambda_ = (xargs or {}).get("lambda", DEFAULT)
    if isinstance(lambda_, bool) or not isinstance(lambda_, int | float) or not 0 <= lambda_ <= 1:
        return "vllm_xargs.lambda: expected a number from 0 to 1"
    if salt is not None and (not isinstance(salt, str) or not salt):
        return "Parameter 'cache_salt' must be a non-empty string if provided."
    if isinstance(salt, str) and (len(salt) > 128 or set(salt) & set("@/\\\0")):
        return "Parameter 'cache_salt' must be at most 128 characters and must not contain '@', '/', '\\', or NUL."
    return None


def _prompt(data: dict[str, Any]) -> list[int]:
    if "messages" in data:
        return encode(templated(data["messages"]))
    prompt = data.get("prompt", data.get("input", ""))
    return prompt if isinstance(prompt, list) else encode(prompt)
