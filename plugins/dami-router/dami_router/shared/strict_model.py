"""Pydantic models over strict YAML: each key's type, bounds, default and description in one place.

Validators raise `Wrong` with a message for the user. `reading` turns a mistake into a RecipeError that names file, line
and key. Types are strict: "5" is not a number, and `true` is not 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError
from pydantic.functional_validators import AfterValidator, WrapValidator, model_validator

from dami_router.shared.strict_yaml import Document, Key, advice_on_key
from dami_router.shared.suggestions import did_you_mean, listed

__all__ = ["Flag", "Many", "Some", "StrictModel", "Text", "Wrong", "expected", "one_of", "reading", "shown"]

T = TypeVar("T")


class Wrong(ValueError):
    """A mistake at `place`: from the top of the file, or, in a model's validator, from that model."""

    def __init__(self, place: Key, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.place, self.message, self.hint = place, message, hint


class StrictModel(BaseModel):
    """A mapping of a YAML file. An unknown key is refused with the known one that is nearest."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: object) -> object:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        if isinstance(data, bool) and "enabled" in known:
            raise Wrong((), f"expected a mapping, found {shown(data)}", f"write `{{enabled: {shown(data)}}}`")
        for key in data if isinstance(data, dict) else ():
            if key not in known:
                raise Wrong((key,), "unknown key", advice_on_key(key, known))
        return data


def shown(value: object) -> str:
    """Return a value as a message shows it: short, truth as YAML has it, and a mapping only by its kind."""
    try:
        if value is None or isinstance(value, bool | dict):
            return "nothing" if value is None else "a mapping" if isinstance(value, dict) else str(value).lower()
        return f"{value!r:.60}"
    except ValueError:  # Python refuses to write an integer of more than 4300 digits
        return "a huge number"


def expected(words: str) -> WrapValidator:
    """Annotate a type with what it expects: the message is then `expected {words}, found 'x'`."""

    def check(value: Any, inner: Any) -> Any:
        try:
            return inner(value)
        except ValidationError:
            raise Wrong((), f"expected {words}, found {shown(value)}") from None

    return WrapValidator(check)


def one_of(*words: str) -> WrapValidator:
    """Annotate a Literal with its words, for messages. A bare `off` is the word, though YAML 1.1 reads it as false."""

    def check(value: Any, inner: Any) -> Any:
        value = ("on" if value else "off") if isinstance(value, bool) else value
        try:
            return inner(value)
        except ValidationError:
            near = did_you_mean(str(value), words)
            hint = f"did you mean `{near}`?" if near else None
            raise Wrong((), f"expected {listed(words)}, found {shown(value)}", hint) from None

    return WrapValidator(check)


def _some(value: tuple[T, ...]) -> tuple[T, ...]:
    # Pydantic's min_length complains of the length also where an entry of the list is wrong.
    if not value:
        raise Wrong((), "expected at least one, found an empty list")
    return value


Text = Annotated[str, Field(min_length=1), expected("text")]
Flag = Annotated[bool, expected("true or false")]
Many = Annotated[tuple[T, ...], Strict(False)]
"""A list in YAML. Not strict, since a strict tuple would refuse a list."""
Some = Annotated[Many[T], Field(json_schema_extra={"minItems": 1}), AfterValidator(_some)]
"""A list of at least one."""

_EXPECTED = {"model_type": "a mapping", "dict_type": "a mapping", "tuple_type": "a list"}
"""Pydantic's own errors that no annotation above replaces."""


@contextmanager
def reading(document: Document) -> Iterator[None]:
    """Raise RecipeError with file, line and key for a mistake found inside: of several, the first in the file."""
    try:
        yield
    except Wrong as wrong:
        raise document.error(wrong.place, wrong.message, hint=wrong.hint) from None
    except ValidationError as error:
        found = [_mistake(document.data, dict(one)) for one in error.errors(include_url=False)]
        first = min(found, key=lambda wrong: document.line(wrong.place))
        raise document.error(first.place, first.message, hint=first.hint) from None


def _mistake(data: Any, error: dict[str, Any]) -> Wrong:
    """Return one entry of pydantic's list of errors, with its place in the file."""
    place, wrong = _place(data, error["loc"]), error.get("ctx", {}).get("error")
    if isinstance(wrong, Wrong):
        return Wrong((*place, *wrong.place), wrong.message, wrong.hint)
    if error["type"] == "missing":
        return Wrong((*place, error["loc"][-1]), "is missing")
    what = _EXPECTED.get(error["type"])
    return Wrong(place, f"expected {what}, found {shown(error['input'])}" if what else error["msg"])


def _place(data: Any, loc: Key) -> Key:
    """Return pydantic's location without what the file lacks: union tags, a missing key, the list around one text."""
    place: Key = ()
    for part in loc:
        if part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int):
            data, place = data[part], (*place, part)
    return place
