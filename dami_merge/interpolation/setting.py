"""A recipe's setting for one parameter, resolved for one tensor as mergekit resolves it.

A setting is a value, a gradient (a list of numbers spread over the layers), or a list of
`{filter, value}` where the first filter found in the tensor's name decides. mergekit 0.1.5
gives tensors outside the layers the gradient's *first* value, the final norm and the head
included; so does this module, since both must agree on every tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from dami_router.errors import DamiError, MisuseError
from dami_router.shared.strict_yaml import Document, Key

__all__ = ["Choice", "Constant", "Gradient", "Setting", "read_setting"]

Value = TypeVar("Value")
Value_co = TypeVar("Value_co", covariant=True)


class Setting(Protocol[Value_co]):
    """Something that a tensor's name and t, its way through the layers in [0, 1], turn into a value."""

    def resolve(self, name: str, t: float) -> Value_co | None:
        """Return the value for a tensor, or None where no filter matches its name."""
        ...


@dataclass(frozen=True)
class Constant(Generic[Value]):
    """The same value for every tensor."""

    value: Value

    def resolve(self, name: str, t: float) -> Value | None:  # noqa: ARG002
        """Return the value."""
        return self.value


@dataclass(frozen=True)
class Gradient:
    """Numbers spread evenly over the layers, with straight lines between them."""

    values: tuple[float, ...]

    def resolve(self, name: str, t: float) -> float | None:  # noqa: ARG002
        """Return the value at t in [0, 1]."""
        position = t * (len(self.values) - 1)
        below = int(position)
        above = min(below + 1, len(self.values) - 1)
        share = position - below
        return (1 - share) * self.values[below] + share * self.values[above]


@dataclass(frozen=True)
class Choice(Generic[Value]):
    """Settings by filter; the first whose text stands in the tensor's name decides."""

    options: tuple[tuple[str | None, Setting[Value]], ...]

    def resolve(self, name: str, t: float) -> Value | None:
        """Return what the first matching filter says, or None."""
        for text, setting in self.options:
            if text in (None, "*") or (text and text in name):
                return setting.resolve(name, t)
        return None

    @property
    def filters(self) -> tuple[str, ...]:
        """The filter texts that are not catch-alls."""
        return tuple(text for text, _ in self.options if text not in (None, "*") and text)


def read_setting(
    document: Document, place: Key, raw: object, parse: Callable[[object], Value], *, gradients: bool
) -> Setting[Value]:
    """Read the setting that stands at `place` of a recipe; errors name its line.

    `parse` reads one value and raises MisuseError for a bad one. `gradients` says whether a
    list of numbers is allowed.
    """
    if isinstance(raw, dict):
        raw = [raw]
    if not isinstance(raw, list):
        return Constant(_parsed(document, place, raw, parse))
    if not raw:
        raise document.error(place, "an empty list; expected a value")
    if any(isinstance(item, dict) for item in raw):
        return Choice(tuple(_option(document, (*place, i), item, parse, gradients) for i, item in enumerate(raw)))
    if not gradients:
        raise document.error(place, "a list of values has no meaning here; expected one, or {filter, value}")
    return _gradient(document, place, raw, parse)


def _gradient(document: Document, place: Key, raw: list[object], parse: Callable[[object], Value]) -> Setting[Value]:
    values = [_parsed(document, (*place, i), item, parse) for i, item in enumerate(raw)]
    if not all(isinstance(value, float) for value in values):
        raise document.error(
            place,
            "a gradient list takes numbers only",
            hint="a schedule such as ramp(0, 1) stands alone, or as the value of a filter",
        )
    return Gradient(tuple(values))  # type: ignore[arg-type,return-value]


def _option(
    document: Document, place: Key, item: object, parse: Callable[[object], Value], gradients: bool
) -> tuple[str | None, Setting[Value]]:
    if not isinstance(item, dict):
        raise document.error(place, "expected {filter: …, value: …} like its neighbours")
    document.only_keys(place, item, ("filter", "value"))
    if "value" not in item:
        raise document.error(place, "lacks `value`")
    text = item.get("filter")
    if text is not None and not isinstance(text, str):
        raise document.error((*place, "filter"), f"expected text, found {text!r}")
    if text == "":
        raise document.error((*place, "filter"), "an empty filter matches nothing; expected text, or no filter")
    value = item["value"]
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value)):
        raise document.error((*place, "value"), "filters cannot stand inside filters")
    return text, read_setting(document, (*place, "value"), value, parse, gradients=gradients)


def _parsed(document: Document, place: Key, raw: object, parse: Callable[[object], Value]) -> Value:
    try:
        return parse(raw)
    except MisuseError as error:
        raise _located(document, place, error) from None


def _located(document: Document, place: Key, error: DamiError) -> DamiError:
    return document.error(place, error.message.removeprefix("lambda: ").removeprefix("path: "), hint=error.hint)
