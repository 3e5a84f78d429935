"""Extraction of the final answer from a text: after `####`, in the last `\\boxed{}`, or the whole text."""

from __future__ import annotations

__all__ = ["boxed", "final_answer", "marked"]

_BOXES = ("\\boxed{", "\\fbox{")
_TRIES = 20  # a text of only opened boxes must not take quadratic time


def final_answer(text: str) -> str:
    """Return the marked final answer, or the whole text, stripped."""
    found = marked(text)
    return text.strip() if found is None else found


def marked(text: str) -> str | None:
    """Return what follows the last `####` on its line (GSM8K), or the last box's content; None if there is neither."""
    _, found, rest = text.rpartition("####")
    line = rest.strip().splitlines()[0].strip() if found and rest.strip() else ""
    return line or boxed(text)


def boxed(text: str) -> str | None:
    """Return the content of the last `\\boxed{…}` with balanced braces; None if there is none."""
    end = len(text)
    for _ in range(_TRIES):
        start = max(text.rfind(box, 0, end) for box in _BOXES)
        if start < 0:
            return None
        begin = text.index("{", start) + 1
        close = _closing(text, begin)
        if close is not None:
            return text[begin:close].strip()
        end = start
    return None


def _closing(text: str, begin: int) -> int | None:
    depth = 1
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return at
    return None
