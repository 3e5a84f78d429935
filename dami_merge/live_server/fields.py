"""Reading a request's fields: types and ranges are checked, what would change the answer is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["NO_LIMIT", "BadFieldError", "Fields", "TooLongError"]

NO_LIMIT = 1 << 30
"""As a highest value: more than anybody means, few enough to count with."""


class BadFieldError(Exception):
    """A field has no meaning here; the message names it and quotes nothing of a prompt."""


class TooLongError(BadFieldError):
    """The prompt leaves no room for an answer."""


@dataclass(frozen=True)
class Fields:
    """The members of a JSON object; null is the same as not given."""

    data: Mapping[str, Any]

    @classmethod
    def of(cls, value: object, what: str) -> Fields:
        """Take a value as an object."""
        if not isinstance(value, dict):
            raise BadFieldError(f"`{what}` must be an object")
        return cls(value)

    def has(self, name: str) -> bool:
        """Say whether a field is given."""
        return self.data.get(name) is not None

    def number(self, name: str, default: float, low: float = -math.inf, high: float = math.inf) -> float:
        """Return a finite number in [low, high]."""
        value = self.data.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            raise BadFieldError(f"`{name}` must be a number")
        if not low <= value <= high:
            raise BadFieldError(f"`{name}` must be {_span(low, high)}")
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
        """Return a text that must be there."""
        value = self.data.get(name)
        if not isinstance(value, str):
            raise BadFieldError(f"`{name}` must be a text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts that are not empty; one text is a list of one."""
        value = self.data.get(name)
        values = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(values, list) or not all(isinstance(text, str) and text for text in values):
            raise BadFieldError(f"`{name}` must be a text or a list of texts")
        return tuple(values)

    def seed(self) -> int | None:
        """Return `seed`; None where there is none."""
        value = self.data.get("seed")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise BadFieldError("`seed` must be a whole number")
        return value

    def refuse(self, neutral: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse fields that this server cannot obey, unless they ask for nothing: null, or one of these values."""
        for name, values in neutral.items():
            value = self.data.get(name)
            if value is not None and value not in values:
                raise BadFieldError(f"`{name}` is not supported here, and would change the answer; leave it out")


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _span(low: float, high: float) -> str:
    if high >= NO_LIMIT:
        return f"at least {low:g}"
    return f"from {low:g} to {high:g}"
