"""What a stopped calibration goes on with: scores by digest, bound to its settings, never two writers."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from dami_router.calibration.probe_journal import Probed, journal
from dami_router.errors import FailureError, MisuseError

SETTINGS = {"tokens": 4, "url": "http://a"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.json.partial"


def done(path: Path, settings: dict[str, Any] = SETTINGS) -> dict[str, Any]:
    """Return what a run finds in a file."""
    with journal(path, settings) as opened:
        return {digest: dict(one.scores) for digest, one in opened.done.items()}


def measured(**scores: float) -> Probed:
    """Scores whose probes took 3 tokens each."""
    return Probed(scores, dict.fromkeys(scores, 3))  # type: ignore[arg-type]


def refusal(path: Path, settings: dict[str, Any] = SETTINGS) -> MisuseError | FailureError:
    """Return why a run may not go on with a file."""
    with pytest.raises((MisuseError, FailureError)) as caught, journal(path, settings):
        pass
    return caught.value


def test_scores_are_kept_by_digest(path: Path) -> None:
    """The first line has the settings, each other one a query's scores; a later run finds and continues them."""
    with journal(path, SETTINGS) as opened:
        assert opened.done == {}
        opened.append("aa", measured(instruct=0.5))
        assert opened.done == {"aa": measured(instruct=0.5)}
    with journal(path, SETTINGS) as opened:
        assert opened.done == {"aa": measured(instruct=0.5)}
        opened.append("bb", measured(instruct=0.25, entropy=1.5))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        SETTINGS,
        {"query": "aa", "scores": {"instruct": 0.5}, "tokens": {"instruct": 3}},
        {"query": "bb", "scores": {"instruct": 0.25, "entropy": 1.5}, "tokens": {"instruct": 3, "entropy": 3}},
    ]
    assert done(path) == {"aa": {"instruct": 0.5}, "bb": {"instruct": 0.25, "entropy": 1.5}}


def test_a_crash_at_any_byte_loses_at_most_the_last_query(path: Path) -> None:
    """Half a line is cut off, half a first line too, and the run goes on."""
    with journal(path, SETTINGS) as opened:
        for digest in ("aa", "bb"):
            opened.append(digest, measured(instruct=0.5))
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with journal(path, SETTINGS) as opened:
            assert list(opened.done) == ["aa", "bb"][: max(whole[:cut].count(b"\n") - 1, 0)]
            for digest in ("aa", "bb"):
                if digest not in opened.done:
                    opened.append(digest, measured(instruct=0.5))
        assert path.read_bytes() == whole, cut


def test_other_settings_are_refused(path: Path) -> None:
    """Scores of other settings or servers are not mixed in, and nothing is changed."""
    with journal(path, SETTINGS) as opened:
        opened.append("aa", measured(instruct=0.5))
    before = path.read_bytes()
    for other in ({"tokens": 4}, {**SETTINGS, "tokens": 8}, {**SETTINGS, "x": 1}):
        error = refusal(path, other)
        assert isinstance(error, MisuseError)
        assert str(error).startswith(f"{path}: ")
        assert "settings" in str(error)
        assert "remove it" in (error.hint or "")
    assert path.read_bytes() == before


@pytest.mark.parametrize("first", [b"[]", b"mine", b"3", b"\xff", b"[" * 100_000, b""])
def test_a_file_of_something_else_is_refused(path: Path, first: bytes) -> None:
    """A first line that is no JSON object is nobody's settings."""
    path.write_bytes(first + b"\n")
    assert "settings" in str(refusal(path))
    assert path.read_bytes() == first + b"\n"


NO_SCORES = ("high", None, True, -0.1, math.inf, math.nan)


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"[]", b"\xff", b'{"query": "x"}', b'{"query": "x", "scores": 3}', b'{"query": "x", "scores": [0.5]}']
    + [json.dumps({"query": "x", "scores": {"instruct": v}, "tokens": {"instruct": 1}}).encode() for v in NO_SCORES]
    + [json.dumps({"query": "x", "scores": {"instruct": 1}, "tokens": {"instruct": v}}).encode() for v in NO_SCORES]
    + [b'{"query": "x", "scores": {"unknown": 0.5}, "tokens": {"unknown": 1}}']
    + [b'{"query": "x", "scores": {"instruct": 0.5}}', b'{"query": "x", "scores": {"instruct": 1}, "tokens": {}}'],
)  # fmt: skip
def test_a_damaged_line_is_refused(path: Path, line: bytes) -> None:
    """Scores are finite numbers of at least 0 under the names of forms; anything else is damage, not a score."""
    with journal(path, SETTINGS) as opened:
        opened.append("aa", measured(instruct=0.5))
    path.write_bytes(path.read_bytes() + line + b"\n")
    error = refusal(path)
    assert isinstance(error, MisuseError)
    assert error.message == f"{path}: damaged"
    assert "remove it" in (error.hint or "")


def test_a_score_may_be_zero_and_whole(path: Path) -> None:
    """0 and 1 are scores, also as JSON's integers."""
    path.write_text(
        json.dumps(SETTINGS) + '\n{"query": "a", "scores": {"instruct": 0}, "tokens": {"instruct": 1}}\n'
        '{"query": "b", "scores": {}, "tokens": {}}\n'
    )
    assert done(path) == {"a": {"instruct": 0}, "b": {}}


def test_two_calibrations_do_not_write_one_file(path: Path) -> None:
    """The second is refused while the first is at work, and nothing of the first is lost."""
    with journal(path, SETTINGS) as opened:
        error = refusal(path)
        opened.append("aa", measured(instruct=0.5))
    assert isinstance(error, FailureError)
    assert str(error).startswith(f"{path}: another calibration")
    assert done(path) == {"aa": {"instruct": 0.5}}


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """The message names the file and the system's reason."""
    error = refusal(tmp_path / "none" / "j")
    assert isinstance(error, FailureError)
    assert error.message == f"{tmp_path / 'none' / 'j'}: cannot be written: No such file or directory"


def test_a_full_disk_is_told_and_takes_half_a_line_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the file and the system's reason; the file stays whole, and so can go on."""
    real, calls = os.write, iter(range(10))

    def full(handle: int, data: bytes) -> int:
        if next(calls):
            raise OSError(28, "No space left on device")
        return real(handle, data[:5])

    with journal(path, SETTINGS) as opened:
        opened.append("aa", measured(instruct=0.5))
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(FailureError, match=rf"^{path}: cannot be written: No space left on device$"):
            opened.append("bb", measured(instruct=0.5))
        monkeypatch.undo()
        assert opened.done == {"aa": measured(instruct=0.5)}
        opened.append("cc", measured(instruct=0.5))
    assert list(done(path)) == ["aa", "cc"]


def test_a_write_that_takes_only_a_part_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may write less than it was given; the rest follows."""
    real = os.write
    with journal(path, SETTINGS) as opened:
        monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:7]))
        opened.append("aa", measured(instruct=0.5))
        monkeypatch.undo()
    assert done(path) == {"aa": {"instruct": 0.5}}


def test_the_file_is_readable_by_others_and_writable_by_its_owner(path: Path) -> None:
    """It holds digests and numbers, no text; and it is closed at the end."""
    with journal(path, SETTINGS) as opened:
        handle = opened.handle
        assert path.stat().st_mode & 0o777 == 0o644 & ~_umask()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
