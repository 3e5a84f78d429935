"""`dami live`: any λ from two checkpoints in memory. `/info` says which two, how λ spreads, and what it can do."""

from __future__ import annotations

from collections.abc import Mapping

from dami_router.backends.backend import Get, Identity, Post, ProbeError, WrongIdentityError
from dami_router.config.specs import BackendSpec, VariantSpec

__all__ = ["LiveReader"]


class LiveReader:
    """Probes a live server, which describes itself in full."""

    async def identify(self, backend: BackendSpec, variant: VariantSpec, get: Get) -> Identity:  # noqa: ARG002
        """Compare the endpoints (names, commits, files as far as both sides know them) and the path."""
        status, info = await get("/info")
        live = info.get("live") if isinstance(info, dict) else None
        if status != 200 or not isinstance(live, dict):
            raise ProbeError(f"/info (status {status}) describes no pair; is this `dami live`?")
        wrong = backend.pair.difference(live) if backend.identity and backend.pair else None
        if wrong:
            raise WrongIdentityError(wrong)
        able = live.get("capabilities")
        known = {k: v for k, v in able.items() if isinstance(v, bool)} if isinstance(able, dict) else {}
        return Identity("live", capabilities=known, info=info)

    async def explore(self, identity: Identity, post: Post) -> Mapping[str, bool | None]:  # noqa: ARG002
        """Return the abilities that the server reports."""
        return identity.capabilities
