"""`dami live`: any λ from two checkpoints in memory, by its own engine or by vLLM.

`/info` says which two, how λ spreads, what the server can do, and which engine it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dami_router.backends.backend import Get, Identity, Post, ProbeError, WrongIdentityError
from dami_router.config.specs import BackendSpec, VariantSpec
from dami_router.messages.pinning import LIVE

__all__ = ["LiveReader", "described"]


def described(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what `/info` says of the pair; empty where it describes none."""
    live = info.get("live")
    return live if isinstance(live, dict) else {}


class LiveReader:
    """Probes a live server, which describes itself in full."""

    async def identify(self, backend: BackendSpec, variant: VariantSpec, get: Get) -> Identity:  # noqa: ARG002
        """Compare the endpoints (names, commits, files as far as both sides know them) and the path."""
        status, info = await get("/info")
        live = described(info) if isinstance(info, dict) else {}
        if status != 200 or not live:
            raise ProbeError(f"/info (status {status}) describes no pair; is this `dami live`?")
        if live.get("mode") == "uniform":
            raise WrongIdentityError("has one λ at a time (`--mode uniform`), expected any λ for each request")
        wrong = backend.pair.difference(live) if backend.identity and backend.pair else None
        if wrong:
            raise WrongIdentityError(wrong)
        able = live.get("capabilities")
        known = {k: v for k, v in able.items() if isinstance(v, bool)} if isinstance(able, dict) else {}
        # vLLM wants its own name for the model; `dami live`'s engine reads λ from it.
        name = info.get("model_id") if info.get("engine") == "vllm" else LIVE
        if not isinstance(name, str) or not name:
            raise ProbeError("/info names no `model_id`")
        return Identity(name, capabilities=known, info=info)

    async def explore(self, identity: Identity, post: Post) -> Mapping[str, bool | None]:  # noqa: ARG002
        """Return the abilities that the server reports."""
        return identity.capabilities
