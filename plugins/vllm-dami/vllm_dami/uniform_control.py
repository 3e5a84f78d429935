"""`/v1/lambda`: the λ of a server that has one at a time, and how it changes between requests."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from vllm_dami.request_lambda import read_lambda

__all__ = ["LambdaControl"]

_MOST = 1 << 16
_MODES = {"finish": "wait", "stop": "abort"}


class LambdaControl:
    """Sets another λ by vLLM's engine client: requests under way end first, later ones wait, the cache is cleared."""

    def __init__(self, engine_client: Any) -> None:
        self._engine = engine_client
        self._changing = asyncio.Lock()
        self.lambda_: float | None = None
        """None: the server's default, with which it started."""

    def check(self, lambda_: float | None) -> None:
        """Raise ValueError if a request asks for another λ than the server's."""
        if lambda_ is not None and lambda_ != self.lambda_:
            now = "its default" if self.lambda_ is None else f"{self.lambda_:g}"
            raise ValueError(f"this server answers at one λ, now {now}, found {lambda_:g}; POST /v1/lambda sets it")

    async def answer(self, request: Request) -> JSONResponse:
        """Answer GET with the λ; POST `{"lambda": 0.6, "requests": "finish"}` sets it first (or `"stop"`)."""
        if request.method == "POST":
            try:
                fields = json.loads(await _bounded(request))
                if not isinstance(fields, dict) or fields.get("lambda") is None:
                    raise ValueError('expected {"lambda": a number in [0, 1]}')
                if fields.get("requests", "finish") not in _MODES:
                    raise ValueError("`requests` must be finish or stop: what happens to requests under way")
                await self.set(read_lambda(fields), _MODES[fields.get("requests", "finish")])
            except (ValueError, UnicodeDecodeError, RecursionError) as error:
                return JSONResponse({"error": {"message": str(error), "code": 400}}, status_code=400)
            except Exception as error:  # whatever a worker raised; vLLM wraps it
                return JSONResponse({"error": {"message": f"λ was not set: {error}", "code": 500}}, status_code=500)
        return JSONResponse({"lambda": self.lambda_})

    async def set(self, lambda_: float | None, mode: str) -> None:
        """Change the weights between requests."""
        async with self._changing:
            await self._engine.pause_generation(mode=mode, clear_cache=True)
            try:
                await self._engine.collective_rpc("set_lambda", args=(lambda_,))
                self.lambda_ = lambda_
            finally:
                await self._engine.resume_generation()


async def _bounded(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST:
            raise ValueError("the body is too large")
    return body
