"""Text Generation Inference: `/info` says which model it serves.

TGI answers any `model` with the one that it serves and echoes the name back, so a wrong
URL is visible only in `/info`. Prompt log-probabilities are empty, with status 200, unless the
server runs with --enable-prefill-logprobs.
"""

from __future__ import annotations

from collections.abc import Mapping

from dami_router.backends.backend import Get, Identity, Post, ProbeError, WrongIdentityError, matches
from dami_router.config.specs import BackendSpec, VariantSpec

__all__ = ["TgiReader"]


class TgiReader:
    """Probes TGI."""

    async def identify(self, backend: BackendSpec, variant: VariantSpec, get: Get) -> Identity:
        """Compare `/info`'s model_id, and model_sha where both sides know it, with the variant."""
        status, _ = await get("/health")
        if status != 200:
            raise ProbeError(f"/health returned status {status}")
        status, info = await get("/info")
        model = info.get("model_id") if isinstance(info, dict) else None
        if status != 200 or not isinstance(model, str):
            raise ProbeError(f"/info (status {status}) names no model_id; is this TGI?")
        if backend.identity and not matches(model, backend, variant):
            raise WrongIdentityError(
                f"serves {model:.200}, expected {backend.model or ' or '.join(sorted(variant.names))}"
            )
        sha = info.get("model_sha")
        if backend.identity and isinstance(sha, str) and variant.revision and sha != variant.revision:
            raise WrongIdentityError(f"serves {model:.200} at commit {sha:.40}, expected {variant.revision}")
        return Identity(model, sha if isinstance(sha, str) else None, info=info)

    async def explore(self, identity: Identity, post: Post) -> Mapping[str, bool | None]:  # noqa: ARG002
        """Ask for one token greedily with all details, and for the chat template."""
        parameters = {"max_new_tokens": 1, "details": True, "decoder_input_details": True, "top_n_tokens": 2}
        status, reply = await post("/generate", {"inputs": "1", "parameters": parameters})
        details = reply.get("details") if status == 200 and isinstance(reply, dict) else None
        found = details if isinstance(details, dict) else {}
        message = {"messages": [{"role": "user", "content": "1"}], "max_tokens": 1, "model": "tgi"}
        status, _ = await post("/v1/chat/completions", message)
        return {
            "log_probs": _has_logprob(found.get("tokens")),
            "prompt_log_probs": bool(found.get("prefill")),
            "top_n": bool(found.get("top_tokens")),
            "chat_template": status == 200,
        }


def _has_logprob(tokens: object) -> bool:
    return isinstance(tokens, list) and bool(tokens) and isinstance(tokens[0], dict) and "logprob" in tokens[0]
