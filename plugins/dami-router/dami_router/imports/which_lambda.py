"""λ of a logged answer: from an option, or from the name of its model, its file or its folders."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
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
_ENDPOINT = re.compile(r"(?<![a-z])(?P<endpoint>instruct|thinking)(?![a-z])", re.IGNORECASE)
_LAMBDA_OF = {"instruct": 0.0, "thinking": 1.0}


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
        found = _endpoint(path, model) if found is None else found
        if found is None:
            what = f"{path}" + (f" (model `{model:.60}`)" if model else "")
            given = f" ({listed(f'`{name}`' for name, _ in self.parts)} is not in it)" if self.parts else ""
            raise MisuseError(
                f"{what}: neither its name nor an option says its λ{given}",
                hint=f"--lambda '{model or path.name}=λ' with a number from 0 (Instruct) to 1 (Thinking), or a name"
                " such as lambda-0.5, NAME-l050, NAME-Instruct or NAME-Thinking",
            )
        return found

    def idle(self, seen: Collection[tuple[Path, str]]) -> list[str]:
        """Return the names of options that are in no file's or model's name."""
        return [name for name, _ in self.parts if not any(_within(name, path, model) for path, model in seen)]

    def find(self, path: Path, model: str) -> float | None:
        """Return λ, None if nothing says it. Options count first; then the model, the file, and its folders."""
        if self.whole is not None:
            return self.whole
        near = [x for x in self.parts if _same(x[0], model) or _within(x[0], path, "")]
        near = near or [x for x in self.parts if _within(x[0], None, model)]
        # Of `v` and `v-2`, the longer name is meant.
        near = [(name, value) for name, value in near if len(name) == max(len(other) for other, _ in near)]
        if len({value for _, value in near}) > 1:
            raise MisuseError(f"{path}: --lambda gives several values: {listed(f'{n}={v:g}' for n, v in near)}")
        if near:
            return near[0][1]
        places = [model, path.name, *(parent.name for parent in path.parents)]
        return next((value for place in places if (value := _said(place)) is not None), None)


def _within(name: str, path: Path | None, model: str) -> bool:
    return name.casefold() in str(path or "").casefold() or name.casefold() in model.casefold()


def _same(name: str, model: str) -> bool:
    return name.casefold() == model.casefold()


def _endpoint(path: Path, model: str) -> float | None:
    """Return the λ of an endpoint's name such as `Qwen3-4B-Instruct-2507`; a name with both words says nothing."""
    for names in ((model,), (path.name, path.parent.name)):
        words = {found["endpoint"].lower() for name in names for found in _ENDPOINT.finditer(name)}
        if words:
            return _LAMBDA_OF[words.pop()] if len(words) == 1 else None
    return None


def _said(name: str) -> float | None:
    values = {float(found["number"]) for found in _NAMED.finditer(name)}
    values |= {float(f"{found['digits'][0]}.{found['digits'][1:]}") for found in _ID.finditer(name)}
    valid = [value for value in values if value <= 1]
    if len(valid) > 1:
        raise MisuseError(f"{name}: its name gives several λ: {listed(f'{x:g}' for x in sorted(valid))}")
    return valid[0] if valid else None
