"""Writing files whole or not at all, and onto the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes.disk import Disk

from dami_router.shared.durable import sync, write_atomically


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    """The new content is there, and nothing else is left."""
    path = tmp_path / "a.json"
    for content in (b"first", b"second"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("before", [None, b"first"])
def test_content_is_on_the_disk_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    """Write, sync, rename, sync of the folder: a power cut between any two leaves the old file or the new one."""
    path = tmp_path / "a.json"
    if before is not None:
        path.write_bytes(before)
    disk = Disk(monkeypatch, tmp_path)
    write_atomically(path, b"second")
    assert disk.kinds() == [("sync", "a.json.tmp"), ("rename", "a.json"), ("sync", tmp_path.name)]
    assert [deed.content for deed in disk.deeds] == [b"second", b"second", {"a.json"}]
    assert disk.holds(path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("deed", ["fsync", "replace"])
def test_a_failure_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deed: str, error: BaseException
) -> None:
    """Where the disk fails or the user stops, what was there stays, and the beginning of the new file is gone."""
    path = tmp_path / "a.json"
    write_atomically(path, b"first")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, deed, fail)
    with pytest.raises(type(error)) as caught:
        write_atomically(path, b"second")
    assert caught.value is error
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["a.json"]


def test_a_stop_before_the_first_byte_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the temporary file is opened stays Ctrl-C, although there is no file to remove."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "open", stop)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.json", b"x")


def test_a_folder_that_cannot_be_written_is_told_as_it_is(tmp_path: Path) -> None:
    """Where not even a temporary file can be made, the error is the system's."""
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "a.json", b"x")


def test_beginnings_can_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a work folder, the target's own folder never holds anything but whole files."""
    (tmp_path / "work").mkdir()
    (tmp_path / "out").mkdir()
    disk = Disk(monkeypatch, tmp_path)
    write_atomically(tmp_path / "out" / "a", b"x", work=tmp_path / "work")
    assert names(tmp_path / "work") == []
    assert names(tmp_path / "out") == ["a"]
    assert disk.deeds[0].path == tmp_path / "work" / "a.tmp"
    assert disk.deeds[-1].path == tmp_path / "out"


def test_a_file_or_a_folder_is_synced_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sync` reaches both, and leaves no open handle, also where the disk fails."""
    (tmp_path / "a").write_bytes(b"x")
    disk = Disk(monkeypatch, tmp_path)
    sync(tmp_path / "a")
    sync(tmp_path)
    assert disk.kinds() == [("sync", "a"), ("sync", tmp_path.name)]
    handles: list[int] = []

    def fail(handle: int) -> None:
        handles.append(handle)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        sync(tmp_path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handles[0])
