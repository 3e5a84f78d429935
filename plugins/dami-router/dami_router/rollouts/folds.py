"""Folds of queries: a query's text is always in one fold, whatever its ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dami_router.errors import MisuseError

__all__ = ["fingerprint", "folds_of"]


def fingerprint(text: str) -> str:
    """Return a 16-digit hexadecimal fingerprint of a query's text, ignoring case and white space."""
    return hashlib.sha256(" ".join(text.lower().split()).encode("utf-8", "replace")).hexdigest()[:16]


def folds_of(texts: Sequence[str], folds: int, *, seed: int = 0) -> list[NDArray[np.intp]]:
    """Return the row numbers of each fold; rows with the same text share a fold.

    Folds are as equal in size as that allows, and depend only on texts and seed, not on the rows' order. Raises
    MisuseError for fewer than two folds, or more folds than distinct texts.
    """
    groups: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        groups.setdefault(fingerprint(text), []).append(row)
    if folds < 2:
        raise MisuseError(f"expected at least 2 folds, found {folds}")
    if len(groups) < folds:
        raise MisuseError(f"{len(groups)} distinct queries cannot be split into {folds} folds")
    members = [groups[key] for key in sorted(groups)]
    parts: list[list[int]] = [[] for _ in range(folds)]
    for group in np.random.default_rng(seed).permutation(len(members)):
        min(parts, key=len).extend(members[group])
    return [np.array(sorted(part), dtype=np.intp) for part in parts]
