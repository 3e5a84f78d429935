"""λ as a model name: clients pin λ with `dami:0.37`, and live servers are asked for it."""

from __future__ import annotations

import re

__all__ = ["LIVE", "pin", "pinned", "shown"]

LIVE = "live"
"""The id of live servers where variants are named: metric labels, the order of fallbacks."""

_PINNED = re.compile(r"dami:([01]|[01]?\.\d{1,6}|1\.0{1,6})")


def shown(lambda_: float) -> str:
    """Return λ as text, with at most six decimals and no trailing zeros."""
    return f"{lambda_:.6f}".rstrip("0").rstrip(".")


def pin(lambda_: float) -> str:
    """Return the model name that pins λ."""
    return f"dami:{shown(lambda_)}"


def pinned(model: str) -> float | None:
    """Return the λ in [0, 1] that a model name pins; None where it pins none."""
    found = _PINNED.fullmatch(model)
    lambda_ = float(found[1]) if found else None
    return lambda_ if lambda_ is not None and lambda_ <= 1.0 else None
