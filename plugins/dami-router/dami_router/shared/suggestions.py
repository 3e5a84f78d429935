"""Words of messages: "did you mean", lists, and how many of something."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["amount", "did_you_mean", "listed"]


def amount(count: int, one: str, several: str | None = None) -> str:
    """Return a count with its noun: `1 answer`, `2,000 answers`; `several` for nouns that take more than an s."""
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like `word`, or None if none is similar."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return near[0] if near else None


def listed(words: Iterable[str]) -> str:
    """Join words in a sentence: `a, b or c`."""
    items = list(words)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " or " + items[-1]
