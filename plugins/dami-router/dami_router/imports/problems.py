"""Problems of an import, collected: what is to be fixed is said at once, not one message after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dami_router.errors import MisuseError

__all__ = ["Problems"]

_SHOWN = 8


@dataclass
class Problems:
    """Errors that do not hinder looking for further ones."""

    found: list[MisuseError] = field(default_factory=list)

    def add(self, error: MisuseError) -> None:
        """Keep an error."""
        self.found.append(error)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep a MisuseError of the block instead of raising it."""
        try:
            yield
        except MisuseError as error:
            self.add(error)

    def report(self) -> None:
        """Raise one MisuseError for all, None of them left out in silence; those with the same hint are named once."""
        if not self.found:
            return
        if len(self.found) == 1:
            raise self.found[0]
        alike: dict[str, list[MisuseError]] = {}
        for error in self.found:
            alike.setdefault(error.hint or error.message, []).append(error)
        texts = [_text(errors) for errors in list(alike.values())[:_SHOWN]]
        more = [f"and {len(alike) - _SHOWN} more"] if len(alike) > _SHOWN else []
        raise MisuseError("the logs cannot be imported yet:\n" + "\n".join(f"- {text}" for text in [*texts, *more]))


def _text(errors: list[MisuseError]) -> str:
    first, others = errors[0], len(errors) - 1
    text = first.message + (f" (and {others} more like this)" if others else "")
    return f"{text}\n  hint: {first.hint}" if first.hint else text
