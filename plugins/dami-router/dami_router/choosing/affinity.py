"""Which replica a conversation goes to: always the same one, which has its beginning cached, unless it is overloaded.

Rendezvous hashing with bounded load: every router picks the same replica without telling the others, and where a
replica comes or goes, only the conversations that were or will be its own move.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

__all__ = ["pick", "tag"]


def tag(name: str) -> bytes:
    """Return a replica's part of the hash, from what names it everywhere."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def pick(key: bytes, tags: Sequence[bytes], busy: Sequence[int], load: float) -> int:
    """Return the place of the replica that a key (at most 64 bytes) prefers among those that are not overloaded.

    `busy` are the replicas' calls in progress; none gets more than `load` ≥ 1 times their mean, rounded up, with this
    call counted.
    """
    most = math.ceil(load * (sum(busy) + 1) / len(busy))
    free = [place for place, calls in enumerate(busy) if calls < most]
    return max(free, key=lambda place: hashlib.blake2b(key, key=tags[place], digest_size=8).digest())
