"""Parts of a set of queries such that the same query is never on both sides, under whatever id it comes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dami_router.errors import MisuseError

__all__ = ["fingerprint", "folds_of"]


def fingerprint(text: str) -> str:
    """Return 16 hexadecimal digits that name a query's text; case and white space do not matter."""
    return hashlib.sha256(" ".join(text.lower().split()).encode("utf-8", "replace")).hexdigest()[:16]


def folds_of(texts: Sequence[str], folds: int, *, seed: int = 0) -> list[NDArray[np.intp]]:
    """Return the row numbers of each of `folds` parts; rows with the same text are in the same part.

    The parts are as equal as that allows, and depend on texts, order and seed alone. Raises MisuseError for
    under two folds, or more folds than different texts.
    """
    groups: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        groups.setdefault(fingerprint(text), []).append(row)
    if folds < 2:
        raise MisuseError(f"expected at least 2 folds, found {folds}")
    if len(groups) < folds:
        raise MisuseError(f"{len(groups)} different queries cannot be split into {folds} folds")
    members = list(groups.values())
    parts: list[list[int]] = [[] for _ in range(folds)]
    for group in np.random.default_rng(seed).permutation(len(members)):
        min(parts, key=len).extend(members[group])
    return [np.array(sorted(part), dtype=np.intp) for part in parts]
