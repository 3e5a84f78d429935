"""YAML with line numbers, for our own files.

PyYAML drops the line of each value, and accepts a key that is given twice. Error messages need the first, and a
mistake must not pass silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dami_router.errors import RecipeError
from dami_router.shared.suggestions import did_you_mean, listed

__all__ = ["Document", "Key", "advice_on_key", "load", "parse"]

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 40
_MAX_VALUES = 200_000  # a few aliases of aliases can stand for more than memory holds

Key = tuple[str | int, ...]
"""The place of a value in a document: mapping keys and list indexes, from the top."""


@dataclass(frozen=True)
class Document:
    """A parsed YAML file, with the line of each value."""

    source: str
    name: str
    data: dict[str, Any]
    lines: Mapping[Key, int] = field(repr=False)

    def line(self, place: Key) -> int:
        """Return the line of `place`, or of the nearest mapping around it that is there; 1 for the whole file."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def error(self, place: Key, message: str, *, hint: str | None = None) -> RecipeError:
        """Return (not raise) an error that names the file, the line and the key of `place`."""
        return RecipeError(f"{self.name}:{self.line(place)}: {dotted(place)}{message}", hint=hint)

    def only_keys(self, place: Key, found: Iterable[str], known: Iterable[str]) -> None:
        """Refuse a key of the mapping at `place` that is not among the known ones."""
        known = list(known)
        for key in found:
            if key not in known:
                raise self.error((*place, key), "unknown key", hint=advice_on_key(key, known))


def advice_on_key(key: str, known: Iterable[str]) -> str:
    """Return the hint for an unknown key: the known one that is nearest, or all of them."""
    known = list(known)
    if key.endswith(")"):
        return "YAML cuts at commas inside { }: put `name(a, b)` in quotes there"
    near = did_you_mean(key, known)
    return f"did you mean `{near}`?" if near else f"known here: {listed(known)}"


def dotted(place: Key) -> str:
    """Write a place for a message: `family.lambdas[2]: `; nothing for the top."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return f"{text}: " if text else ""


def load(path: Path) -> Document:
    """Read a YAML file of at most 1 MiB whose top level is one mapping."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RecipeError(f"{path}: larger than 1 MiB; expected a small YAML file")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file", hint="give the path of a YAML recipe") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: is a folder; expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    return parse(text, str(path))


def parse(text: str, name: str = "<yaml>") -> Document:
    """Parse YAML text whose top level is one mapping; a key twice, a second document and a strange tag are refused."""
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise RecipeError(f"{name}: empty; expected a YAML mapping")
        builder = _Builder(loader, name)
        data = builder.value(node, ())
    except yaml.composer.ComposerError as error:
        if error.problem and "another document" in error.problem:
            raise RecipeError(
                f"{name}: several YAML documents in one file; expected one",
                hint="mergekit-multi files hold several recipes: give one recipe at a time",
            ) from None
        raise _syntax_error(error, name) from None
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, name) from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise RecipeError(f"{name}: nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(data, dict):
        raise RecipeError(f"{name}: expected a mapping at the top, found {type(data).__name__}")
    return Document(source=text, name=name, data=data, lines=builder.lines)


def _syntax_error(error: yaml.MarkedYAMLError, name: str) -> RecipeError:
    line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
    return RecipeError(f"{name}{line}: not valid YAML: {error.problem or error.context}")


@dataclass(frozen=True)
class _Builder:
    """Turns PyYAML's nodes into values, and notes the line of each."""

    loader: yaml.SafeLoader
    name: str
    lines: dict[Key, int] = field(default_factory=dict)

    def value(self, node: yaml.Node, place: Key) -> Any:
        line = node.start_mark.line + 1
        if len(place) > _MAX_DEPTH:
            raise self.error(line, (), "nested too deeply")
        if len(self.lines) > _MAX_VALUES:
            raise self.error(line, (), f"more than {_MAX_VALUES} values", "are there aliases of aliases?")
        self.lines.setdefault(place, line)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*place, i)) for i, child in enumerate(node.value)]
        try:
            return self.loader.construct_object(node)
        except (ValueError, OverflowError) as error:
            raise self.error(line, place, str(error)) from None

    def mapping(self, node: yaml.MappingNode, place: Key) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line, key = key_node.start_mark.line + 1, key_node.value
            if not isinstance(key, str):
                raise self.error(line, place, "a key must be a plain word")
            if key in result:
                raise self.error(line, (*place, key), "given twice")
            self.lines[(*place, key)] = line
            result[key] = self.value(value_node, (*place, key))
        return result

    def error(self, line: int, place: Key, message: str, hint: str | None = None) -> RecipeError:
        return RecipeError(f"{self.name}:{line}: {dotted(place)}{message}", hint=hint)
