"""Any server with OpenAI's routes: vLLM, SGLang, llama.cpp, Inference Endpoints; `/v1/models` says what it serves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dami_router.backends.backend import Get, Identity, Post, ProbeError, WrongIdentityError, matches
from dami_router.config.specs import BackendSpec, VariantSpec

__all__ = ["OpenAIReader"]


class OpenAIReader:
    """Probes a server with OpenAI's routes."""

    async def identify(self, backend: BackendSpec, variant: VariantSpec, get: Get) -> Identity:
        """Find the variant among the served models; vLLM's `root`, the real path behind an alias, must agree."""
        if not backend.identity:
            return await _alive(backend, variant, get)
        status, body = await get("/v1/models")
        entries = _entries(body)
        if status != 200 or entries is None:
            raise ProbeError(f"/v1/models (status {status}) is no list of models")
        for entry in entries:
            root = entry.get("root")
            elsewhere = isinstance(root, str) and root not in ("", entry["id"]) and not backend.model
            if matches(entry["id"], backend, variant) and not (elsewhere and not matches(str(root), backend, variant)):
                return Identity(entry["id"])
            if isinstance(root, str) and matches(root, backend, variant):
                return Identity(entry["id"])
        served = ", ".join(_name(entry) for entry in entries[:8]) or "nothing"
        expected = backend.model or " or ".join(sorted(variant.names))
        if backend.shared:
            # A gateway lists the models whose servers are up: this one may come later.
            raise ProbeError(f"serves {served:.300}, and not {expected} now")
        raise WrongIdentityError(f"serves {served:.300}, expected {expected}")

    async def explore(self, identity: Identity, post: Post) -> Mapping[str, bool | None]:
        """Ask for one token, as text and as chat, with log-probabilities; those of a prompt in vLLM's form."""
        chat = {
            "model": identity.model,
            "messages": [{"role": "user", "content": "1"}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 2,
        }
        limited = await _limits_thinking(identity.model, post)
        status, reply = await post("/v1/chat/completions", chat)
        tokens = _logprobs(reply)
        text = {"model": identity.model, "prompt": "1", "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        text_status, text_reply = await post("/v1/completions", text)
        choice = _choice(text_reply) if text_status == 200 else {}
        return {
            "log_probs": bool(tokens),
            "prompt_log_probs": bool(choice.get("prompt_logprobs")),
            "top_n": bool(tokens and isinstance(tokens[0], dict) and tokens[0].get("top_logprobs")),
            "chat_template": status == 200,
            "thinking_budget": limited,
        }


async def _limits_thinking(model: str, post: Post) -> bool:
    """Return whether the server has vLLM's `thinking_token_budget`: it refuses a wrong value, and takes a right one.

    Others ignore the field, and vLLM without a reasoning parser refuses every value.
    """
    chat = {"model": model, "messages": [{"role": "user", "content": "1"}], "max_tokens": 1, "temperature": 0}
    wrong, _ = await post("/v1/chat/completions", {**chat, "thinking_token_budget": "none"})
    if wrong not in (400, 422):
        return False
    right, _ = await post("/v1/chat/completions", {**chat, "thinking_token_budget": 1})
    return right == 200


async def _alive(backend: BackendSpec, variant: VariantSpec, get: Get) -> Identity:
    # `transformers serve` lists the Hub's cache, not the folder that it serves: rely on /health.
    for path in ("/health", "/v1/models"):
        status, _ = await get(path)
        if status == 200:
            return Identity(backend.model or variant.id)
    raise ProbeError(f"/health and /v1/models fail (status {status})")


def _entries(body: Any) -> list[dict[str, Any]] | None:
    # TGI's own description says that /v1/models is one object, llama.cpp and others send a list under `data`.
    data = body.get("data", [body] if "id" in body else None) if isinstance(body, dict) else body
    if not isinstance(data, list):
        return None
    return [entry for entry in data if isinstance(entry, dict) and isinstance(entry.get("id"), str)]


def _name(entry: Mapping[str, Any]) -> str:
    root = entry.get("root")
    return f"{entry['id']} (root {root})" if isinstance(root, str) and root != entry["id"] else str(entry["id"])


def _choice(reply: Any) -> dict[str, Any]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def _logprobs(reply: Any) -> list[Any]:
    found = _choice(reply).get("logprobs")
    content = found.get("content") if isinstance(found, dict) else None
    return content if isinstance(content, list) else []
