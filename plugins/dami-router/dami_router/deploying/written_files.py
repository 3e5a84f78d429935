"""The folder that `dami deploy` writes: each text file opens with a comment on what it is and how to use it.

YAML is written from data, never from text: a name in a manifest cannot become a key. The folder is filled under a
temporary name and renamed in one step, so that it is complete or absent.
"""

from __future__ import annotations

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
    """Return text as comment lines; indented lines (commands) stay as they are, others are wrapped."""
    lines = [
        one
        for line in text.strip("\n").split("\n")
        for one in ([line] if line.startswith(" ") else textwrap.wrap(line, 116, break_long_words=False) or [""])
    ]
    return "".join(f"{mark} {line}".rstrip() + "\n" for line in lines)


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
