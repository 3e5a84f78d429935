"""Reading a request's fields: types and ranges are checked, and unknown fields are refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dami_merge.live_server.known_fields import KnownFields
from dami_router.shared.suggestions import did_you_mean

__all__ = ["NO_LIMIT", "BadFieldError", "Fields", "TooLongError", "same"]

_ELSEWHERE = {"lambda": "pin λ with the model's name instead, as in `dami:0.37`"}
"""Where something else says what an unknown field is meant to say."""

NO_LIMIT = 1 << 30
"""The highest value of fields without a limit of their own: more than anyone needs."""


class BadFieldError(Exception):
    """A field is invalid or not supported here; the message names it and quotes nothing of a prompt."""


class TooLongError(BadFieldError):
    """The prompt leaves no room for an answer."""


@dataclass(frozen=True)
class Fields:
    """The fields of a JSON object; null means the same as not given."""

    data: Mapping[str, Any]

    @classmethod
    def of(cls, value: object, what: str) -> Fields:
        """Return the fields of a value that must be an object."""
        if not isinstance(value, dict):
            raise BadFieldError(f"`{what}` must be an object")
        return cls(value)

    def has(self, name: str) -> bool:
        """Tell whether a field is given."""
        return self.data.get(name) is not None

    def number(self, name: str, default: float, low: float = -math.inf, high: float = math.inf) -> float:
        """Return a finite number in [low, high]."""
        value = self.data.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            raise BadFieldError(f"`{name}` must be a number")
        if not low <= value <= high:
            raise BadFieldError(f"`{name}` must be {_span(low, high)}, found {value!r:.40}")
        return float(value)

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """Return a whole number in [low, high]."""
        value = self.number(name, default, low, high)
        if value != int(value):
            raise BadFieldError(f"`{name}` must be a whole number")
        return int(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.data.get(name, default)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadFieldError(f"`{name}` must be true or false")
        return value

    def text(self, name: str) -> str:
        """Return a required text."""
        value = self.data.get(name)
        if not isinstance(value, str):
            raise BadFieldError(f"`{name}` must be a text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts, none of them empty; a single text counts as a list of one."""
        value = self.data.get(name)
        values = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(values, list) or not all(isinstance(text, str) and text for text in values):
            raise BadFieldError(f"`{name}` must be a text or a list of texts")
        return tuple(values)

    def seed(self) -> int | None:
        """Return `seed`, or None if it is not given."""
        value = self.data.get("seed")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise BadFieldError("`seed` must be a whole number")
        return value

    def accept(self, known: KnownFields) -> None:
        """Refuse every field that is unknown, or has a value that is not supported."""
        for name, value in self.data.items():
            if value is None or name in known.used or name in known.harmless:
                continue
            if name not in known.neutral:
                near = did_you_mean(name, known.used)
                advice = _ELSEWHERE.get(name, "it might change the answer; leave it out")
                hint = f"did you mean `{near}`?" if near else advice
                raise BadFieldError(f"`{name:.60}` is not a field of this API; {hint}")
            if not any(same(value, neutral) for neutral in known.neutral[name]):
                raise BadFieldError(f"`{name}` is not supported here, and would change the answer; leave it out")


def same(value: object, other: object) -> bool:
    """Tell whether JSON values are equal: 1 equals 1.0, but not true."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _span(low: float, high: float) -> str:
    if math.isinf(high):
        return f"at least {_plain(low)}"
    return f"from {_plain(low)} to {_plain(high)}"


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
