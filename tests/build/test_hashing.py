"""Hashes of what a build reads: on the way, ahead of it, and in any cut."""

from __future__ import annotations

import hashlib
import itertools
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dami_merge.files import hashing
from dami_merge.files.hashing import InputHashes, hashing_ahead
from dami_router.errors import CheckpointError

SIZE = 1000
CONTENT = bytes(i % 251 for i in range(SIZE))


class After:
    """An event that is set after so many questions."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def is_set(self) -> bool:
        """Count a question."""
        self.left -= 1
        return self.left < 0


def stream(hashes: InputHashes, header: int, cuts: list[int], before: Callable[[], object] = lambda: None) -> None:
    """Feed a file as a build does: its header, then its parts."""
    hashes.begin("w", header)
    ends = [header, *sorted(header + cut % (SIZE - header) for cut in cuts), SIZE]
    for start, end in itertools.pairwise(ends):
        hashes.feed("w", start, memoryview(CONTENT)[start:end])
    before()
    hashes.end("w")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.integers(0, SIZE - 1),
    cuts=st.lists(st.integers(0, SIZE), max_size=6),
    steps=st.integers(0, 12),
    block=st.integers(1, 300),
)
def test_a_hash_that_was_begun_ahead_is_the_files_own(
    header: int, cuts: list[int], steps: int, block: int, tmp_path: Path
) -> None:
    """Wherever hashing ahead stops, and however the rest is cut, the sha256 is that of the whole file."""
    (tmp_path / "w").write_bytes(CONTENT)
    hashes = InputHashes(tmp_path, ["w"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "_AHEAD", block)
        hashes.ahead("w", After(steps))  # type: ignore[arg-type]
    stream(hashes, header, cuts)
    assert hashes.known("w")
    assert hashes.of("w") == hashlib.sha256(CONTENT).hexdigest()


def test_a_file_that_changes_between_hashing_and_reading_is_refused(tmp_path: Path) -> None:
    """What was hashed ahead and what is built from must be one content."""
    file = tmp_path / "w"
    file.write_bytes(CONTENT)
    hashes = InputHashes(tmp_path, ["w"])
    hashes.ahead("w", threading.Event())
    with pytest.raises(CheckpointError, match="w: changed while it was read"):
        stream(hashes, 8, [], before=lambda: file.write_bytes(CONTENT[::-1] + b"!"))
    assert not hashes.known("w")


@given(steps=st.integers(0, 12), block=st.integers(1, 300))
def test_a_hash_that_is_asked_for_goes_on_from_what_was_done_ahead(steps: int, block: int) -> None:
    """Wherever hashing ahead stopped, `of` gives the whole file's sha256; feeding in between changes nothing."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        (Path(folder) / "w").write_bytes(CONTENT)
        hashes = InputHashes(Path(folder), ["w"])
        patch.setattr(hashing, "_AHEAD", block)
        hashes.ahead("w", After(steps))  # type: ignore[arg-type]
        hashes.feed("w", 10, memoryview(CONTENT)[10:20])
        assert hashes.of("w") == hashlib.sha256(CONTENT).hexdigest()


def test_a_file_that_changed_before_its_hash_was_asked_for_is_refused(tmp_path: Path) -> None:
    """A hash speaks for the file as it was when the build began, or not at all."""
    (tmp_path / "w").write_bytes(CONTENT)
    hashes = InputHashes(tmp_path, ["w"])
    (tmp_path / "w").write_bytes(CONTENT + b"!")
    with pytest.raises(CheckpointError, match="w: changed while it was read"):
        hashes.of("w")


def test_what_cannot_be_hashed_ahead_is_no_failure_yet(tmp_path: Path) -> None:
    """A missing file is told of by the one who needs it, not by the thread that looked ahead."""
    (tmp_path / "w").write_bytes(CONTENT)
    hashes = InputHashes(tmp_path, ["w"])
    (tmp_path / "w").unlink()
    with hashing_ahead([(hashes, "w")]):
        pass
    with pytest.raises(CheckpointError, match="w: cannot be read"):
        hashes.of("w")


def test_hashing_ahead_ends_with_its_block(tmp_path: Path) -> None:
    """When the block ends, no thread reads on."""
    (tmp_path / "w").write_bytes(CONTENT)
    with hashing_ahead([(InputHashes(tmp_path, ["w"]), "w")]):
        pass
    assert not any(thread.name == "hash" for thread in threading.enumerate())
