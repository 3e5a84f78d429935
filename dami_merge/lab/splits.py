"""The split of chains into training and held-out ones, and the drawing of queries.

A hash of its text alone decides a chain's split, so a held-out chain is never trained on, whatever the seed, the
number of steps or the order of drawing. Tuning uses ``dev``, reports use ``test``. ``fresh`` are further chains of the
``test`` split, for measurements at a larger scale: none of them is in the 1,000 ``test`` queries, which were reported
while estimators were designed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Literal

from dami_merge.lab.task import DIGITS, OPERATORS, evaluate, length, make_chain

__all__ = [
    "HELD_OUT_LENGTHS",
    "TRAINED_LENGTHS",
    "Drawn",
    "LabQuery",
    "Split",
    "draw_chain",
    "draw_queries",
    "draw_training_chain",
    "split_of",
]

Split = Literal["train", "dev", "test"]
Drawn = Literal["dev", "test", "fresh"]

TRAINED_LENGTHS = range(1, 8)
HELD_OUT_LENGTHS = range(1, 11)  # 8 to 10 are never trained on: out of distribution on purpose

_TENTHS: dict[int, Split] = {0: "test", 1: "dev"}
# The first test stream was seen while pairs were tuned; this one was drawn afterwards.
_STREAMS: dict[Drawn, str] = {"dev": "dev", "test": "test-2", "fresh": "test-3"}
_LENGTH_DECAY = 0.75
_PURE_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class LabQuery:
    """One held-out question: a stable id, the chain as the user's message, the correct digit, the operations n."""

    id: str
    text: str
    expected: str
    length: int


def split_of(chain: str) -> Split:
    """Return the split of a chain: a tenth of all chains is ``test``, a tenth ``dev``, the rest ``train``."""
    return _TENTHS.get(_hash(chain) % 10, "train")


def draw_chain(rng: Random, operations: int) -> str:
    """Return a random chain of n operations; a quarter are pure maximum or pure minimum, easy at any length.

    Only ``rng.random()`` is used, whose sequence is stable across Python versions.
    """
    if rng.random() < _PURE_SHARE:
        operators = _pick(rng, "><") * operations
    else:
        operators = "".join(_pick(rng, OPERATORS) for _ in range(operations))
    return make_chain("".join(_pick(rng, DIGITS) for _ in range(operations + 1)), operators)


def draw_training_chain(rng: Random) -> str:
    """Return a random chain of the ``train`` split; n is 1…7 with weights 0.75^(n−1)."""
    weights = [_LENGTH_DECAY ** (n - 1) for n in TRAINED_LENGTHS]
    target = rng.random() * sum(weights)
    operations = TRAINED_LENGTHS[-1]
    for n, weight in zip(TRAINED_LENGTHS, weights, strict=True):
        target -= weight
        if target < 0:
            operations = n
            break
    while split_of(chain := draw_chain(rng, operations)) != "train":
        pass
    return chain


def draw_queries(split: Drawn, count: int = 1000) -> tuple[LabQuery, ...]:
    """Return distinct queries of a held-out split, the same at every call, n = 1…10 as evenly as distinct chains allow.

    Their order does not depend on length, so that any prefix is a fair sample. ``fresh`` has no chain of ``test``.
    Raises ``ValueError`` for the training split or a negative count.
    """
    if split not in _STREAMS or count < 0:
        names = ", ".join(map(repr, _STREAMS))
        raise ValueError(f"queries are drawn from {names} and count is at least 0, got {split!r}, {count}")
    old = frozenset(query.text for query in draw_queries("test")) if split == "fresh" else frozenset[str]()
    chains: set[str] = set()
    for n in HELD_OUT_LENGTHS:
        # Short lengths have too few chains (only 400 with n = 1); longer ones make up for them.
        share = -(-(count - len(chains)) // (HELD_OUT_LENGTHS.stop - n))
        chains.update(_draw_distinct(split, n, share, old))
    ordered = sorted(chains, key=_hash)
    return tuple(LabQuery(f"{split}-{i:04d}", c, evaluate(c), length(c)) for i, c in enumerate(ordered))


def _draw_distinct(split: Drawn, operations: int, count: int, old: frozenset[str]) -> Iterator[str]:
    part: Split = "dev" if split == "dev" else "test"
    if operations == 1:
        every = (make_chain(a + b, o) for a, o, b in product(DIGITS, OPERATORS, DIGITS))
        yield from sorted((c for c in every if split_of(c) == part and c not in old), key=_hash)[:count]
        return
    rng, seen = Random(f"{_STREAMS[split]}-{operations}"), set[str]()  # noqa: S311  (no secret)
    while len(seen) < count:
        chain = draw_chain(rng, operations)
        if split_of(chain) == part and chain not in seen and chain not in old:
            seen.add(chain)
            yield chain


def _pick(rng: Random, characters: str) -> str:
    return characters[int(rng.random() * len(characters))]


def _hash(chain: str) -> int:
    return int.from_bytes(hashlib.sha256(chain.encode()).digest()[:8], "big")
