"""What a request says about λ: `vllm_xargs: {"lambda": 0.37}`, and the salt under which its keys and values are cached.

Keys and values depend on λ, and vLLM's hash of a cached block does not. `cache_salt` is part of that hash. A request
may read the cache only if its salt names its λ; `SALT` in its `vllm_xargs` says so, and `DamiMiddleware` writes both.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["LAMBDA", "SALT", "read_lambda", "salt_for", "salted"]

LAMBDA = "lambda"
SALT = "lambda_salt"


def read_lambda(xargs: Mapping[str, Any] | None) -> float | None:
    """Return the λ that a request asks for, or None; raises ValueError if it is not a number in [0, 1]."""
    value = (xargs or {}).get(LAMBDA)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"vllm_xargs: `{LAMBDA}` must be a number in [0, 1], found {value!r:.40}")
    if not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise ValueError(f"vllm_xargs: `{LAMBDA}` must be in [0, 1], found {value!r:.40}")
    return float(value)


def salt_for(lambda_: float | None, own: str = "") -> str:
    """Return the cache salt of a request at λ (None: the server's default); `own` is the client's salt, if any."""
    client = hashlib.sha256(own.encode()).hexdigest()[:32] if own else ""
    return f"lambda={'default' if lambda_ is None else repr(lambda_)};{client}"


def salted(xargs: Mapping[str, Any] | None, lambda_: float | None) -> bool:
    """Tell whether a request comes with a salt for its λ."""
    told = (xargs or {}).get(SALT)
    return isinstance(told, str) and told.startswith(salt_for(lambda_))
