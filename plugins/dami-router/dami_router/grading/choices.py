"""Multiple choice: the letter that an answer settles on, in the ways in which models say it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dami_router.grading.answers import marked

__all__ = ["MultipleChoice", "chosen_letter"]

_LONGEST = 20_000
_DRESS = r"[\s*_`$\"'([{]*"
_END = r"(?![A-Za-z0-9'’])"
_ONLY = re.compile(rf"{_DRESS}([A-Za-z])[\s*_`$\"')\]}}.:]*")
_LEADING = re.compile(rf"{_DRESS}([A-Z])(?:[)\].:]|\s*$|[*`]+[).:]?(?:\s|$))")
_SAID = re.compile(
    rf"(?:answer|choice|option|correct one)\b(?:\s+(?:is|would be|must be|should be))?\s*[:=]?{_DRESS}"
    rf"(?:(?:option|choice|letter|the)\b{_DRESS})*([A-Z]){_END}",
    re.IGNORECASE,
)
_BRACKETED = re.compile(r"\(([A-Z])\)|\*\*([A-Z])\*\*")
_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s?\{([^{}]*)\}")


@dataclass(frozen=True)
class MultipleChoice:
    """Correct if the answer settles on the expected letter."""

    name: str = "choice"

    def unfit(self, expected: str) -> str | None:
        """Only a single letter can be compared."""
        return None if _letter(expected) else "is not a single letter"

    def grade(self, answer: str, expected: str) -> float:
        """Compare letters, ignoring case."""
        found = chosen_letter(answer)
        return float(found is not None and found == _letter(expected))

    def close(self) -> None:
        """Do nothing."""


def chosen_letter(answer: str) -> str | None:
    """Return the letter that an answer settles on, as a capital; None if there is none.

    A marked answer (`####`, `\\boxed{}`) counts alone. Otherwise, in this order: a text that is only a letter; the last
    `answer is B`, `Answer: (B)`, `option B`; the last line if it begins with a letter and a bracket or a point; the
    only letter in brackets or bold. Two different letters in brackets settle nothing.
    """
    text = answer[-_LONGEST:]
    mark = marked(text)
    if mark is not None:
        bare = _WRAPPED.sub(r"\1", mark)
        return _letter(bare) or _first(_LEADING.match(bare))
    if (only := _letter(text)) is not None:
        return only
    said = [found[1] for found in _SAID.finditer(text) if found[1].isupper()]
    if said:
        return said[-1]
    last = text.rstrip().rpartition("\n")[2]
    if (leading := _first(_LEADING.match(last))) is not None:
        return leading
    shown = {found[1] or found[2] for found in _BRACKETED.finditer(text)}
    return shown.pop() if len(shown) == 1 else None


def _letter(text: str) -> str | None:
    found = _ONLY.fullmatch(text.strip()[:40]) if len(text.strip()) <= 40 else None
    return found[1].upper() if found else None


def _first(found: re.Match[str] | None) -> str | None:
    return found[1] if found else None
