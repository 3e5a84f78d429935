"""λ of a logged answer: from an option, or from the name of its model, its file or its folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dami_router.errors import MisuseError
from dami_router.shared.suggestions import listed

__all__ = ["LambdaNames"]

_NUMBER = r"(?P<number>[01](?:\.\d+)?)(?!\d)"
_NAMED = re.compile(rf"(?:(?:lambda|λ)[-_=: ]?|\bdami(?::|__)){_NUMBER}", re.IGNORECASE)
"""`lambda-0.4`, `λ=0.4`, and a live server's `dami:0.4`; in names of folders, tools write `__` for the colon."""
_ID = re.compile(r"(?:^|[-_.])l(?P<digits>[01]\d\d+)(?=$|[-_.])")
"""`-l040` is λ = 0.40, as in the ids of built variants."""


@dataclass(frozen=True)
class LambdaNames:
    """The given λ: one for everything (`whole`), or by a part of the model's or the file's name."""

    whole: float | None = None
    parts: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(cls, given: Sequence[str]) -> LambdaNames:
        """Read the options: `0.5`, or any number of `NAME=0.5`; raises MisuseError."""
        parts = []
        for text in given:
            name, found, number = text.rpartition("=")
            try:
                value = float(number)
            except ValueError:
                value = -1.0
            if not 0 <= value <= 1:
                raise MisuseError(f"--lambda {text!r:.80}: expected a λ from 0 to 1, or NAME=λ")
            if not found:
                if len(given) > 1:
                    raise MisuseError("--lambda without a name holds for every answer: give it alone")
                return cls(whole=value)
            parts.append((name, value))
        return cls(parts=tuple(parts))

    def of(self, path: Path, model: str) -> float:
        """Return λ; raises MisuseError if no name says it, or if two say different ones."""
        found = self.find(path, model)
        if found is None:
            what = f"{path}" + (f" (model `{model:.60}`)" if model else "")
            raise MisuseError(
                f"{what}: neither its name nor an option says its λ",
                hint=f"--lambda '{model or path.name}=0.5', or a name such as lambda-0.5 or NAME-l050",
            )
        return found

    def find(self, path: Path, model: str) -> float | None:
        """Return λ, None if nothing says it. Options count first; then the model, the file, and its folders."""
        if self.whole is not None:
            return self.whole
        near = [(name, value) for name, value in self.parts if name == model or name in str(path)]
        near = near or [(name, value) for name, value in self.parts if model and name in model]
        # Of `v` and `v-2`, the longer name is meant.
        near = [(name, value) for name, value in near if len(name) == max(len(other) for other, _ in near)]
        if len({value for _, value in near}) > 1:
            raise MisuseError(f"{path}: --lambda gives several values: {listed(f'{n}={v:g}' for n, v in near)}")
        if near:
            return near[0][1]
        places = [model, path.name, *(parent.name for parent in path.parents)]
        return next((value for place in places if (value := _said(place)) is not None), None)


def _said(name: str) -> float | None:
    values = {float(found["number"]) for found in _NAMED.finditer(name)}
    values |= {float(f"{found['digits'][0]}.{found['digits'][1:]}") for found in _ID.finditer(name)}
    valid = [value for value in values if value <= 1]
    if len(valid) > 1:
        raise MisuseError(f"{name}: its name gives several λ: {listed(f'{x:g}' for x in sorted(valid))}")
    return valid[0] if valid else None
