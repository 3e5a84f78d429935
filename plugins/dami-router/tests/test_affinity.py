"""Affinity's arithmetic: the same replica for the same key, few moves where replicas come and go, bounded load."""

from __future__ import annotations

import hashlib
import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dami_router.choosing.affinity import pick, tag

KEYS = [hashlib.blake2b(f"conversation {n}".encode(), digest_size=16).digest() for n in range(3000)]


def names(count: int) -> list[int]:
    return [tag(f"http://10.0.0.{n}:8000") for n in range(count)]


def test_keys_spread_evenly_over_replicas() -> None:
    """3,000 conversations over six replicas: each has 500, within five standard deviations."""
    counts = Counter(pick(key, names(6), [0] * 6, 1.25) for key in KEYS)
    deviation = math.sqrt(3000 * (1 / 6) * (5 / 6))
    assert all(abs(counts[place] - 500) < 5 * deviation for place in range(6))


def test_a_key_keeps_its_replica_where_another_one_leaves() -> None:
    """Whatever order they are listed in: only the conversations of the replica that left move."""
    tags = names(5)
    for key in KEYS[:300]:
        before = tags[pick(key, tags, [0] * 5, 1.25)]
        left = [t for t in reversed(tags) if t != tags[2]]
        after = left[pick(key, left, [0] * 4, 1.25)]
        assert after == before or before == tags[2]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.sampled_from(KEYS), st.floats(1, 3))
def test_no_replica_is_picked_beyond_its_load(busy: list[int], key: bytes, load: float) -> None:
    """With the call it gets, a replica has at most `load` times the mean, rounded up."""
    place = pick(key, names(len(busy)), busy, load)
    assert busy[place] + 1 <= math.ceil(load * (sum(busy) + 1) / len(busy))


def test_a_busy_replica_gives_up_its_keys_only_while_it_is_busy() -> None:
    """Of one that has all calls nothing is asked; when they are done, its conversations come back."""
    tags = names(3)
    mine = [key for key in KEYS[:200] if pick(key, tags, [0, 0, 0], 1.25) == 1]
    assert mine
    assert all(pick(key, tags, [0, 9, 0], 1.25) != 1 for key in mine)
    assert all(pick(key, tags, [1, 1, 1], 1.25) == 1 for key in mine)
