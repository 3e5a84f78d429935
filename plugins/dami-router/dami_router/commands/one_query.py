"""Shared by `dami route` and `dami ask`: one router for one query, its errors as sentences."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dami_router.errors import FailureError, MisuseError
from dami_router.messages.request import read_request
from dami_router.router import Decision, NoAnswerError, NoVariantError, Router, UnknownModelError

__all__ = ["ask", "decide"]


@asynccontextmanager
async def _router(config: Path) -> AsyncIterator[Router]:
    hint = f"dami serve {config} --check"
    try:
        async with Router.from_file(config) as router:
            router.require_usable()
            yield router
    except UnknownModelError as error:
        raise MisuseError(str(error)) from None
    except NoVariantError:
        raise FailureError("no server of any variant is available", hint=hint) from None
    except NoAnswerError as error:
        calls = f"after {error.attempts} call(s)"
        raise FailureError(f"no server answered {calls}; the last: {error.last.words}", hint=hint) from None


async def decide(config: Path, query: str, model: str, effort: str | None) -> Decision:
    """Return the decision for one query."""
    async with _router(config) as router:
        return await router.route(query, model=model, effort=effort)


async def ask(
    config: Path, query: str, model: str, effort: str | None, max_tokens: int | None
) -> tuple[Decision, str, dict[str, Any]]:
    """Send one query as a chat; return the decision, the variant that answered, and the completion."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": query}]}
    body |= {"reasoning_effort": effort} if effort else {}
    body |= {"max_tokens": max_tokens} if max_tokens else {}
    headers = {"content-type": "application/json"}
    request = read_request("/v1/chat/completions", "openai", json.dumps(body).encode(), headers)
    async with _router(config) as router:
        decision = await router.decide(request)
        answered = await router.send(request, decision)
        try:
            return decision, answered.name, _completion(answered.reply.status, answered.reply.first)
        finally:
            answered.close()


def _completion(status: int, body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
        if status == 200 and isinstance(data["choices"][0]["message"], dict):
            return dict(data)
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    said = body[:300].decode(errors="replace")
    raise FailureError(f"the server's reply (status {status}) is not a chat completion: {said}")
