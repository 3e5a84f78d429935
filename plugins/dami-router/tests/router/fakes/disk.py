"""What a process asks of the disk, in order: a killed process loses no write, a power cut loses all that is not synced.

`Disk` wraps the calls by which a file comes to the disk. Each one is noted with what was there at that
moment, so that a test can tell a sync before the last write from one behind it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest


@dataclass(frozen=True)
class Deed:
    """One call: a sync of a file (its bytes) or a folder (its names), or a rename of `path` to `to`."""

    kind: Literal["sync", "rename"]
    path: Path
    content: Any
    to: Path | None = None


class Disk:
    """Notes what this process syncs and renames below `folder`, from now to the end of the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.deeds: list[Deed] = []
        self._folder = folder.resolve()
        self._sync = os.fsync
        monkeypatch.setattr(os, "fsync", self._synced)
        monkeypatch.setattr(os, "fdatasync", self._synced, raising=False)
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, self._renamed(getattr(os, name)))

    def index(self, kind: str, path: Path) -> int:
        """Return which deed was the last of its kind on a path; of a rename, the path is the new one."""
        found = [i for i, d in enumerate(self.deeds) if d.kind == kind and (d.to or d.path) == path.resolve()]
        assert found, f"no {kind} of {path}, only {[(d.kind, (d.to or d.path).name) for d in self.deeds]}"
        return found[-1]

    def kinds(self) -> list[tuple[str, str]]:
        """Return all deeds as pairs of kind and name."""
        return [(deed.kind, (deed.to or deed.path).name) for deed in self.deeds]

    def holds(self, path: Path) -> bool:
        """Whether a power cut now would leave `path` as it is: its bytes, its name and its folder's name are synced."""
        path = path.resolve()
        here, moved = path, False
        for number in range(len(self.deeds) - 1, -1, -1):
            deed, later = self.deeds[number], self.deeds[number + 1 :]
            if deed.to is not None and here.is_relative_to(deed.to):
                if not _named(later, deed.to):
                    return False
                moved = moved or here == deed.to
                here = deed.path / here.relative_to(deed.to)
            elif deed.kind == "sync" and deed.path == here:
                return deed.content == path.read_bytes() and (moved or _named(self.deeds, here))
        return False

    def _synced(self, handle: int) -> None:
        self._sync(handle)
        path = _path(handle)
        if path.is_relative_to(self._folder):
            self.deeds.append(Deed("sync", path, _content(path)))

    def _renamed(self, real: Any) -> Any:
        def renamed(source: Any, target: Any, **options: Any) -> None:
            content = _content(Path(source))
            real(source, target, **options)
            if Path(target).resolve().is_relative_to(self._folder):
                self.deeds.append(Deed("rename", Path(source).absolute(), content, Path(target).absolute()))

        return renamed


def _named(deeds: list[Deed], path: Path) -> bool:
    """Whether a folder was synced while it had the path's name in it."""
    return any(deed.kind == "sync" and deed.path == path.parent and path.name in deed.content for deed in deeds)


def _content(path: Path) -> bytes | frozenset[str]:
    return frozenset(child.name for child in path.iterdir()) if path.is_dir() else path.read_bytes()


def _path(handle: int) -> Path:
    proc = Path(f"/proc/self/fd/{handle}")
    if proc.exists():
        return proc.readlink()
    import fcntl

    return Path(fcntl.fcntl(handle, fcntl.F_GETPATH, b"\0" * 1024).rstrip(b"\0").decode())
