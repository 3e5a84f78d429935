"""One thing of each endpoint, by name."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

__all__ = ["Sides"]

T = TypeVar("T")


class Sides(NamedTuple, Generic[T]):
    """Instruct's and Thinking's."""

    instruct: T
    thinking: T
