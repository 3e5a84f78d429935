"""λ as a model's name: `dami:0.37` is what a client writes to pin λ, and what a live server is asked for."""

from __future__ import annotations

import re

__all__ = ["LIVE", "pin", "pinned", "shown"]

LIVE = "live"
"""Stands for the live servers where variants are named: labels of metrics, the order of fallbacks."""

_PINNED = re.compile(r"dami:([01]|[01]?\.\d{1,6}|1\.0{1,6})")


def shown(lambda_: float) -> str:
    """Return λ as text, to six digits behind the point and without idle zeros."""
    return f"{lambda_:.6f}".rstrip("0").rstrip(".")


def pin(lambda_: float) -> str:
    """Return the model name that asks for λ and nothing else."""
    return f"dami:{shown(lambda_)}"


def pinned(model: str) -> float | None:
    """Return the λ in [0, 1] that a model's name pins; None where it pins none."""
    found = _PINNED.fullmatch(model)
    lambda_ = float(found[1]) if found else None
    return lambda_ if lambda_ is not None and lambda_ <= 1.0 else None
