"""YAML with line numbers: what our own files are read with.

PyYAML keeps neither the line of a value nor a complaint about a key given twice; both
matter when a misspelt key would otherwise pass silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dami_router.errors import RecipeError
from dami_router.shared.suggestions import did_you_mean, listed

__all__ = ["Document", "Key", "load", "parse"]

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 40

Key = tuple[str | int, ...]
"""The place of a value in a document: mapping keys and list indexes, from the top."""


@dataclass(frozen=True)
class Document:
    """A parsed YAML file that remembers where each value stands."""

    source: str
    name: str
    data: dict[str, Any]
    lines: Mapping[Key, int] = field(repr=False)

    def error(self, place: Key, message: str, *, hint: str | None = None) -> RecipeError:
        """Return (not raise) an error that names the file, the line and the key of `place`."""
        at = place
        while at and at not in self.lines:
            at = at[:-1]
        line = f":{self.lines[at]}" if at in self.lines else ""
        return RecipeError(f"{self.name}{line}: {dotted(place)}{message}", hint=hint)

    def only_keys(
        self, place: Key, found: Mapping[str, Any], known: Iterable[str], problem: str = "unknown key"
    ) -> None:
        """Refuse a key of the mapping at `place` that is not among the known ones, in these words."""
        known = list(known)
        for key in found:
            if key not in known:
                near = did_you_mean(key, known)
                hint = f"did you mean `{near}`?" if near else f"known here: {listed(known)}"
                if key.endswith(")"):
                    hint = "YAML cuts at commas inside { }: put `name(a, b)` in quotes there"
                raise self.error((*place, key), problem, hint=hint)


def dotted(place: Key) -> str:
    """Write a place as people say it: `family.lambdas[2]: `; nothing for the top."""
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
    """Parse YAML text; duplicate keys, several documents, aliases and tags are refused."""
    lines: dict[Key, int] = {}
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise RecipeError(f"{name}: empty; expected a YAML mapping")
        data = _value(loader, node, (), lines, name)
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
    return Document(source=text, name=name, data=data, lines=lines)


def _syntax_error(error: yaml.MarkedYAMLError, name: str) -> RecipeError:
    line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
    return RecipeError(f"{name}{line}: not valid YAML: {error.problem or error.context}")


def _value(loader: yaml.SafeLoader, node: yaml.Node, place: Key, lines: dict[Key, int], name: str) -> Any:
    if len(place) > _MAX_DEPTH:
        raise RecipeError(f"{name}:{node.start_mark.line + 1}: nested too deeply")
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, place, lines, name)
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, child, (*place, i), lines, name) for i, child in enumerate(node.value)]
    try:
        return loader.construct_object(node)
    except (ValueError, OverflowError) as error:
        raise RecipeError(f"{name}:{node.start_mark.line + 1}: {dotted(place)}{error}") from None


def _mapping(
    loader: yaml.SafeLoader, node: yaml.MappingNode, place: Key, lines: dict[Key, int], name: str
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = key_node.value
        if not isinstance(key, str):
            raise RecipeError(f"{name}:{line}: {dotted(place)}a key must be a plain word")
        if key in result:
            raise RecipeError(f"{name}:{line}: {dotted((*place, key))}given twice")
        lines[(*place, key)] = line
        result[key] = _value(loader, value_node, (*place, key), lines, name)
    return result
