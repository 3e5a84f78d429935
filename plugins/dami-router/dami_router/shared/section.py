"""One mapping of a strict YAML file, read value by value: type, range and spelling are checked.

Every mistake is a RecipeError that names the file, the line and the key.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dami_router.shared.strict_yaml import Document, Key
from dami_router.shared.suggestions import did_you_mean, listed

__all__ = ["Section"]


@dataclass(frozen=True)
class Section:
    """The mapping at `place` of a document."""

    document: Document
    place: Key
    data: dict[str, Any]

    @classmethod
    def of(cls, document: Document, place: Key, value: object) -> Section:
        """Take a value of the document as a mapping; refuse anything else."""
        if not isinstance(value, dict):
            raise document.error(place, f"expected a mapping, found {_said(value)}")
        return cls(document, place, value)

    def error(self, key: str, message: str, hint: str | None = None) -> Exception:
        """Return (not raise) an error about one key."""
        return self.document.error((*self.place, key) if key else self.place, message, hint=hint)

    def only(self, *known: str, problem: str = "unknown key") -> None:
        """Refuse keys other than these, in these words."""
        self.document.only_keys(self.place, self.data, known, problem)

    def has(self, key: str) -> bool:
        """Say whether a key is given and is not null."""
        return self.data.get(key) is not None

    def section(self, key: str) -> Section:
        """Return the mapping under a key; an empty one where the key is missing."""
        return Section.of(self.document, (*self.place, key), self.data.get(key, {}))

    def items(self, key: str) -> list[Section]:
        """Return a list of mappings."""
        values = self.data.get(key)
        if not isinstance(values, list) or not values:
            raise self.error(key, f"expected a list of mappings, found {_said(values)}")
        return [Section.of(self.document, (*self.place, key, i), value) for i, value in enumerate(values)]

    def text(self, key: str, default: str | None = None) -> str:
        """Return a non-empty string; without a default it must be there."""
        value = self.data.get(key, default)
        if isinstance(value, str) and value:
            return value
        raise self.error(key, "is missing" if value is None else f"expected text, found {_said(value)}")

    def optional(self, key: str) -> str | None:
        """Return a non-empty string, or None where it is not given."""
        return self.text(key) if self.has(key) else None

    def texts(self, key: str) -> list[str]:
        """Return a list of strings; one string is a list of one; nothing is an empty list."""
        value = self.data.get(key)
        values = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
            raise self.error(key, f"expected text or a list of texts, found {_said(value)}")
        return list(values)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.data.get(key, default)
        if isinstance(value, bool):
            return value
        raise self.error(key, f"expected true or false, found {_said(value)}")

    def choice(self, key: str, choices: Iterable[str], default: str) -> str:
        """Return one of a few words."""
        choices = list(choices)
        value = self.data.get(key, default)
        # YAML 1.1 reads a bare `off` as false.
        value = {False: "off", True: "on"}.get(value, value) if isinstance(value, bool) else value
        if value in choices:
            return str(value)
        near = did_you_mean(str(value), choices)
        hint = f"did you mean `{near}`?" if near else None
        raise self.error(key, f"expected {listed(choices)}, found {_said(value)}", hint)

    def number(self, key: str, default: float | None, low: float = 0.0, high: float = math.inf) -> float:
        """Return a finite number in [low, high]; without a default it must be there."""
        value = self.data.get(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            if low <= value <= high:
                return float(value)
            span = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
            raise self.error(key, f"expected a number {span}, found {value:g}")
        raise self.error(key, "is missing" if value is None else f"expected a number, found {_said(value)}")

    def whole(self, key: str, default: int, low: int = 0) -> int:
        """Return a whole number of at least `low`."""
        value = self.number(key, default, low)
        if value != int(value):
            raise self.error(key, f"expected a whole number, found {value:g}")
        return int(value)


def _said(value: object) -> str:
    return "nothing" if value is None else "a mapping" if isinstance(value, dict) else f"{value!r:.60}"
