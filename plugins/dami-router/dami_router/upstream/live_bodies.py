"""How a request's body tells a server which λ to answer at.

`dami live`'s own engine reads λ from the model's name. vLLM is told in `vllm_xargs`, and again in `cache_salt`: keys
and values depend on λ, and vLLM would otherwise answer from a prefix that it cached at another λ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from dami_router.messages.pinning import pin, shown
from dami_router.messages.request import Request
from dami_router.upstream.fleet import Replica

__all__ = ["body_at", "data_at"]

_XARGS, _SALT = "vllm_xargs", "cache_salt"


def body_at(request: Request, replica: Replica, lambda_: float) -> bytes:
    """Return a client's request as the replica must get it to answer at λ, otherwise byte for byte unchanged."""
    name = replica.served_as(lambda_)
    if not replica.live or replica.engine != "vllm":
        return request.body_for(name)
    return request.body_with({"model": name, **_members(lambda_, request.members(_XARGS, _SALT))})


def data_at(data: Mapping[str, Any], replica: Replica, lambda_: float) -> Mapping[str, Any]:
    """Return a request of the router's own, which names the model already, as the replica must get it."""
    return {**data, **_members(lambda_, data)} if replica.engine == "vllm" else data


def _members(lambda_: float, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what vLLM is told; `given` are the client's members of the same names.

    What vLLM must refuse (arguments that are no object, a salt that is no text or is empty) stays as it is.
    """
    xargs, salt = given.get(_XARGS), given.get(_SALT)
    told = {"lambda": float(shown(lambda_))}
    return {
        _XARGS: {**xargs, **told} if isinstance(xargs, dict) else told if xargs is None else xargs,
        _SALT: _salted(pin(lambda_), salt) if salt is None or isinstance(salt, str) else salt,
    }


def _salted(ours: str, salt: str | None) -> str:
    """Return a salt of λ and of the client's own, which is hashed: vLLM takes at most 128 characters."""
    if not salt:
        return ours if salt is None else salt
    return f"{ours}:{hashlib.blake2b(salt.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"
