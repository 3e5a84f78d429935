"""The λ of each conversation's last answer: within a conversation, λ may only rise, and in a tool loop it stays."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["Conversations"]


class Conversations:
    """The λ of the last `size` conversations, by a digest of how each began; no text is kept."""

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._lambdas: OrderedDict[bytes, float] = OrderedDict()

    def last(self, key: bytes | None) -> float | None:
        """Return the λ of the conversation's last answer; None for an unknown one."""
        return self._lambdas.get(key) if key is not None else None

    def answered(self, key: bytes | None, lambda_: float) -> None:
        """Remember the λ of an answer; the least recently used conversation is forgotten."""
        if key is None:
            return
        self._lambdas[key] = lambda_
        self._lambdas.move_to_end(key)
        if len(self._lambdas) > self._size:
            self._lambdas.popitem(last=False)
