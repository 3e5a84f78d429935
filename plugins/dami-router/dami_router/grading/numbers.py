"""Numbers as people and models write them: `1,234.50`, `$18`, `42 %`, `-3/4`, `\\frac{3}{4}`, `−7`, `1.5e3`."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

__all__ = ["last_number", "only_number", "same_number"]

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,60})(?:\.\d{1,60})?|\.\d{1,60}"
_NUMBER = re.compile(
    rf"(?<![\w.])(?P<sign>[-+])?\s?\$?\s?(?:\\[dt]?frac\s?\{{(?P<over>{_DIGITS})\}}\s?\{{(?P<under>{_DIGITS})\}}"
    rf"|(?P<value>{_DIGITS})(?P<power>[eE][-+]?\d{{1,2}}(?!\w))?(?:\s?/\s?(?P<by>{_DIGITS}))?)"
)
_NOISE = re.compile(r"\\[,!;: ]|\{,\}|\\\$|\\text\s?\{[^{}]*\}|\\(?:mathrm|mbox)\s?\{[^{}]*\}|\^\s?\\circ|\\%")
_POWER = re.compile(r"[\d)}]\s?(?:\^|\*\*)")
_TOLERANCE = Fraction(1, 10**6)


def only_number(text: str) -> Fraction | None:
    """Return the number that makes up a text, with at most a unit or currency sign; None for other texts."""
    plain = _plain(text)
    found = _NUMBER.search(plain)
    if found is None or _POWER.search(plain):
        return None
    rest = plain[: found.start()] + plain[found.end() :]
    return None if any(c.isdigit() or c in "+*/=\\" for c in rest) or len(rest) > 40 else _value(found)


def last_number(text: str) -> Fraction | None:
    """Return the last number in a text; None if there is none, or if an exponent follows it."""
    plain = _plain(text[-20_000:])
    found = None
    for found in _NUMBER.finditer(plain):  # noqa: B007 - the last one is wanted
        pass
    if found is None or _POWER.search(plain, max(found.start() - 8, 0)):
        return None
    return _value(found)


def same_number(one: Fraction, other: Fraction) -> bool:
    """Return whether two numbers are equal: exactly for whole numbers, else to one part in a million."""
    if one.denominator == other.denominator == 1:
        return one == other
    return abs(one - other) <= _TOLERANCE * max(abs(one), abs(other))


def _plain(text: str) -> str:
    return _NOISE.sub("", text.replace("−", "-").replace("\u2009", "").replace("\u00a0", " "))


def _value(found: re.Match[str]) -> Fraction | None:
    if found["over"] is not None:
        value, by = _fraction(found["over"]), _fraction(found["under"])
    else:
        value = _fraction(found["value"]) * Fraction(10) ** int((found["power"] or "e0")[1:])
        by = _fraction(found["by"]) if found["by"] else Fraction(1)
    if not by:
        return None
    return -value / by if found["sign"] == "-" else value / by


def _fraction(digits: str) -> Fraction:
    return Fraction(Decimal(digits.replace(",", "")))
