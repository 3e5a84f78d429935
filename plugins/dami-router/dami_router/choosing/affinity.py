"""Which replica a conversation goes to: always the same one, which has its beginning cached, unless it is overloaded.

Rendezvous hashing with bounded load: every router picks the same replica without telling the others, and where a
replica comes or goes, only the conversations that were or will be its own move.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

__all__ = ["pick", "tag"]


_PRIME = (1 << 127) - 1


def tag(name: str) -> int:
    """Return a replica's part of the hash, from what names it everywhere."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest())


def pick(key: bytes, tags: Sequence[int], busy: Sequence[int], load: float) -> int:
    """Return the place of the replica that a key, itself a digest, prefers among those that are not overloaded.

    `busy` are the replicas' calls in progress; none gets more than `load` ≥ 1 times their mean, rounded up, with this
    call counted.
    """
    most = math.ceil(load * (sum(busy) + 1) / len(busy))
    # A product modulo a prime is enough: keys and tags are digests, and nobody gains from a replica of their choice.
    value = int.from_bytes(key)
    scores = [value * tag % _PRIME if calls < most else -1 for tag, calls in zip(tags, busy, strict=True)]
    return scores.index(max(scores))
