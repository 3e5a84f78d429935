"""Writing files whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dami_router.durable import write_atomically


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    """The new content is there, and nothing else is left."""
    path = tmp_path / "a.json"
    for content in (b"first", b"second"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert names(tmp_path) == ["a.json"]


def test_a_failure_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk fails, what was there stays, and the beginning of the new file is gone."""
    path = tmp_path / "a.json"
    write_atomically(path, b"first")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"second")
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["a.json"]


def test_beginnings_can_lie_elsewhere(tmp_path: Path) -> None:
    """With a work folder, the target's own folder never holds anything but whole files."""
    (tmp_path / "work").mkdir()
    (tmp_path / "out").mkdir()
    write_atomically(tmp_path / "out" / "a", b"x", work=tmp_path / "work")
    assert names(tmp_path / "work") == []
    assert names(tmp_path / "out") == ["a"]
