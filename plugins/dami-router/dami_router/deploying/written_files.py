"""The folder that `dami deploy` writes: each text file opens with a comment on what it is and how to use it.

YAML is written from data, never from text: a name in a manifest cannot become a key. The folder is filled under a
temporary name and renamed in one step, so that it is complete or absent.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dami_router.errors import FailureError, MisuseError
from dami_router.shared.durable import sync, write_atomically

__all__ = ["Files", "comment", "require_new", "write_folder", "yaml_file"]

Files = Mapping[str, bytes]
"""Paths below the folder, with `/`, and contents."""
_SHORT = 90
"""Characters of a list or mapping that stays on one line."""
_WIDTH = 116
"""Characters of a comment's line after its mark."""


class _Readable(yaml.SafeDumper):
    """Short lists and mappings of plain values on one line, all others in blocks; no aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, False)

    def represent_sequence(
        self, tag: str, sequence: Iterable[Any], flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        node = super().represent_sequence(tag, sequence, flow_style)
        node.flow_style = _short(node.value)
        return node

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        node.flow_style = len(node.value) > 1 and _short([one for pair in node.value for one in pair])
        return node


def _short(nodes: Sequence[yaml.Node]) -> bool:
    plain = [node.value for node in nodes if isinstance(node, yaml.ScalarNode) and node.style != "|"]
    return len(plain) == len(nodes) and sum(len(text) + 2 for text in plain) <= _SHORT


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)


def comment(text: str, mark: str = "#") -> str:
    """Return text as comment lines.

    Indented lines (commands) and blank ones stay as they are. The lines between them are a paragraph, which is wrapped
    to lines of about one length: no word is broken, and none is left alone.
    """
    lines: list[str] = []
    for literal, group in itertools.groupby(text.strip("\n").split("\n"), lambda line: line[:1] in ("", " ")):
        together = list(group)
        lines += together if literal else _wrapped(" ".join(together))
    return "".join(f"{mark} {line}".rstrip() + "\n" for line in lines)


def _wrapped(paragraph: str) -> list[str]:
    """Return the fewest lines of at most 116 characters, in the narrowest form that has as few."""

    def at(width: int) -> list[str]:
        return textwrap.wrap(paragraph, width, break_long_words=False, break_on_hyphens=False)

    widest = at(_WIDTH)
    return next((lines for width in range(_WIDTH // 2, _WIDTH) if len(lines := at(width)) == len(widest)), widest)


def yaml_file(opening: str, *documents: Mapping[str, Any]) -> bytes:
    """Return a YAML file that opens with a comment; several documents are separated by `---`."""
    bodies = [
        yaml.dump(dict(one), Dumper=_Readable, sort_keys=False, allow_unicode=True, width=120) for one in documents
    ]
    return (comment(opening) + "---\n".join(bodies)).encode()


def require_new(out: Path) -> None:
    """Raise MisuseError where the folder exists or has no place to be."""
    if out.exists() or out.is_symlink():
        raise MisuseError(f"{out}: exists already, and is not overwritten", hint="choose another --out, or remove it")
    if not out.absolute().parent.is_dir():
        raise MisuseError(f"{out.absolute().parent}: no such folder; expected the place for {out.name}")


def write_folder(out: Path, files: Files, check: Callable[[Path], None]) -> None:
    """Write the files into a new folder; `check` sees it before it gets its name, and may raise.

    Raises MisuseError where the folder exists, FailureError where it cannot be written. Nothing is left then.
    """
    require_new(out)
    place = out.absolute().parent
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=place))
    except OSError as error:
        raise FailureError(f"{out}: cannot be written: {error.strerror}") from None
    try:
        for name, content in files.items():
            path = work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        check(work)
        for folder in _folders(work):
            sync(folder)
        work.chmod(0o777 & ~_umask())
        require_new(out)
        work.rename(out)
        sync(place)
    except OSError as error:
        raise FailureError(f"{out}: cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _folders(root: Path) -> Iterable[Path]:
    return [root, *(path for path in root.rglob("*") if path.is_dir())]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
