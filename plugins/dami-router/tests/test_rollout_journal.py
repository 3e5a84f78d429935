"""The file of a run's rollouts: rows that are on the disk before they count, and what a later run may go on with."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.disk import Disk
from hypothesis import given, settings
from hypothesis import strategies as st

from dami_router import __version__
from dami_router.collecting.rollout_journal import Key, journal, rollouts_of, settings_path
from dami_router.collecting.settings import QuestionSettings
from dami_router.datasets import Question
from dami_router.errors import FailureError, MisuseError

SETTINGS = QuestionSettings("number")
QUESTIONS = {f"q{i}": Question(f"q{i}", f"{i}+{i}?", str(2 * i), "data.jsonl") for i in range(3)}
MODELS = {0.0: "v-l000", 1.0: "v-l100"}


def row(number: int = 0, lambda_: float = 0.0, **more: Any) -> dict[str, Any]:
    """Return a row as a run writes it."""
    return {
        "query_id": f"q{number}", "query": f"{number}+{number}?", "lambda": lambda_, "correct": True, "tokens": 5,
        "model": MODELS[lambda_], "expected": str(2 * number), **more,
    }  # fmt: skip


def write(path: Path, *rows: dict[str, Any], settings: QuestionSettings = SETTINGS) -> None:
    """Run once: append rows, a call for each."""
    with journal(path, settings, "data.jsonl") as opened:
        for one in rows:
            opened.append([one])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r.jsonl"


def test_rows_are_appended_as_they_are(path: Path) -> None:
    """One line for each, without spaces, letters beyond ASCII readable; a later run appends behind them."""
    write(path, row(0, answer="λ é"))
    write(path, row(1), row(2))
    assert lines(path) == [row(0, answer="λ é"), row(1), row(2)]
    assert path.read_text().startswith('{"query_id":"q0","query":"0+0?",')
    assert '"answer":"λ é"}\n' in path.read_text()


def test_a_row_is_on_the_disk_when_it_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings first, then each append is written and synced before it returns, the file's own name included."""
    disk = Disk(monkeypatch, path.parent)
    with journal(path, SETTINGS, "data.jsonl") as opened:
        assert disk.holds(settings_path(path))
        for number in range(3):
            before = len(disk.deeds)
            opened.append([row(number), row(number, 1.0)])
            assert [(d.kind, d.path.name) for d in disk.deeds[before:]] == [("sync", path.name)]
            assert disk.deeds[-1].content.count(b"\n") == 2 * (number + 1)
            assert disk.holds(path)


def test_what_a_crash_left_is_cut_off_and_synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a row at the end is removed, on the disk too, before anything is appended behind it."""
    write(path, row(0))
    whole = path.read_bytes()
    path.write_bytes(whole + json.dumps(row(1)).encode()[:-1])
    disk = Disk(monkeypatch, path.parent)
    with journal(path, SETTINGS, "data.jsonl") as opened:
        assert opened.repaired
        assert path.read_bytes() == whole
        assert disk.deeds[-1].content == whole
        opened.append([row(2)])
    assert lines(path) == [row(0), row(2)]
    with journal(path, SETTINGS, "data.jsonl") as opened:
        assert not opened.repaired


CHUNK = 1 << 20


@pytest.mark.parametrize("kept", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
@pytest.mark.parametrize("torn", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_half_a_row_of_any_length_is_cut_off(path: Path, kept: int, torn: int) -> None:
    """However long the lines are and wherever they lie, exactly what follows the last line's end goes."""
    write(path)
    whole = b"x" * (kept - 1) + b"\n" if kept else b""
    path.write_bytes(whole + b"y" * torn)
    with journal(path, SETTINGS, "data.jsonl") as opened:
        assert opened.repaired
        assert path.read_bytes() == whole


def test_a_first_row_that_was_torn_leaves_a_run_that_has_begun(path: Path) -> None:
    """Nothing is kept of the row, everything of the settings."""
    write(path)
    path.write_bytes(b'{"query_id":')
    with pytest.raises(MisuseError, match="temperature"), journal(path, replace(SETTINGS, temperature=1.0), "d"):
        pass
    write(path, row(0))
    assert lines(path) == [row(0)]


def test_a_full_disk_takes_half_a_row_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file ends behind the last whole append, and the message says to run the same command again."""
    write(path, row(0))
    whole = path.read_bytes()
    real = os.write
    calls = iter(range(10))

    def short(handle: int, data: memoryview) -> int:
        if next(calls):
            raise OSError(28, "No space left on device")
        return real(handle, data[:10])

    with journal(path, SETTINGS, "data.jsonl") as opened:
        monkeypatch.setattr(os, "write", short)
        with pytest.raises(FailureError) as caught:
            opened.append([row(1), row(2)])
        monkeypatch.undo()
        assert path.read_bytes() == whole
        opened.append([row(1)])
    assert str(caught.value).startswith(f"{path}: cannot be written: No space left on device")
    assert "same command again" in (caught.value.hint or "")
    assert lines(path) == [row(0), row(1)]


def test_a_write_that_takes_only_a_part_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may write less than it was given; the rest follows."""
    real = os.write
    with journal(path, SETTINGS, "data.jsonl") as opened:
        monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:7]))
        opened.append([row(0), row(1)])
        monkeypatch.undo()
    assert lines(path) == [row(0), row(1)]


def refusal(path: Path, settings: QuestionSettings = SETTINGS) -> MisuseError | FailureError:
    """Return why a run may not go on with a file."""
    with pytest.raises((MisuseError, FailureError)) as caught, journal(path, settings, "data.jsonl"):
        pass
    return caught.value


def test_two_runs_do_not_write_one_file(path: Path) -> None:
    """The second one is refused while the first is at work, and not afterwards."""
    with journal(path, SETTINGS, "data.jsonl"):
        error = refusal(path)
    assert isinstance(error, FailureError)
    assert str(error).startswith(f"{path}: another run")
    assert "--out" in (error.hint or "")
    write(path, row(0))
    assert lines(path) == [row(0)]


@pytest.mark.parametrize("name", ["r.json", "r.jsonl.gz", "r", "r.jsonl.part"])
def test_a_run_s_file_is_json_lines(tmp_path: Path, name: str) -> None:
    """Any other name is refused before anything is written."""
    error = refusal(tmp_path / name)
    assert isinstance(error, MisuseError)
    assert ".jsonl" in str(error)
    assert "compress" in (error.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """The message names the file and the reason."""
    error = refusal(tmp_path / "none" / "r.jsonl")
    assert isinstance(error, FailureError)
    assert str(error).startswith(f"{tmp_path / 'none' / 'r.jsonl'}: cannot be written: No such file")


def test_a_file_of_nobody_s_run_is_left_alone(path: Path) -> None:
    """Rollouts without settings beside them are not this command's to append to."""
    path.write_text(json.dumps(row(0)) + "\n")
    error = refusal(path)
    assert isinstance(error, MisuseError)
    assert "exists, but not from `dami rollout`" in str(error)
    assert "--out" in (error.hint or "")
    assert lines(path) == [row(0)]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'{"other": 1}', b'{"settings": 3}', b"\xff"])
def test_settings_that_cannot_be_read_are_refused(path: Path, content: bytes) -> None:
    """A damaged or foreign settings file does not count as the same settings."""
    write(path, row(0))
    settings_path(path).write_bytes(content)
    error = refusal(path)
    assert isinstance(error, MisuseError)
    assert str(settings_path(path)) in str(error) or "settings" in str(error)
    assert "--out" in (error.hint or "")


def test_other_settings_are_named(path: Path) -> None:
    """A run that would ask or grade otherwise may not be mixed in, and the message says which settings differ."""
    write(path, row(0))
    error = refusal(path, replace(SETTINGS, temperature=0.5, max_tokens=7))
    assert isinstance(error, MisuseError)
    assert "temperature" in str(error)
    assert "max_tokens" in str(error)
    assert "--out" in (error.hint or "")


def test_settings_are_kept_beside_the_rollouts(path: Path) -> None:
    """Readable JSON: what wrote it, the dataset, the settings; the first run writes it, a later one leaves it."""
    with journal(path, QuestionSettings("number", system="λ"), "data.jsonl") as opened:
        assert opened.empty
        opened.append([row(0)])
        assert not opened.empty
    file = settings_path(path)
    assert file.name == "r.jsonl.run.json"
    text = file.read_text(encoding="utf-8")
    assert json.loads(text) == {
        "created_with": f"dami-router {__version__}", "dataset": "data.jsonl",
        "settings": QuestionSettings("number", system="λ").as_dict(),
    }  # fmt: skip
    assert '\n  "dataset"' in text
    assert "λ" in text
    assert text.endswith("}\n")
    with journal(path, QuestionSettings("number", system="λ"), "elsewhere.jsonl"):
        pass
    assert file.read_text(encoding="utf-8") == text


def checked(path: Path, questions: Any = QUESTIONS, models: Any = MODELS) -> set[Key]:
    """Return what a run finds done in a file."""
    with journal(path, SETTINGS, "data.jsonl") as opened:
        opened.check(questions, models)
        return opened.done


def test_what_is_done_is_known_by_question_lambda_cap_and_sample(path: Path) -> None:
    """A row without a sample is sample 0; a cap makes another answer; one of a λ that is served no more is done too."""
    write(path, row(0), row(0, 1.0), row(0, sample=1), row(2, sample=0), row(2, sample=0, cap=8))
    done = {(q, x, None, i) for q, x, i in (("q0", 0.0, 0), ("q0", 1.0, 0), ("q0", 0.0, 1), ("q2", 0.0, 0))}
    done.add(("q2", 0.0, 8, 0))
    assert checked(path) == done
    assert checked(path, models={0.0: "v-l000"}) == done


@pytest.mark.parametrize(
    ("rows", "says", "hint"),
    [
        ([row(0), row(0)], r":2: the same question", "remove"),
        ([row(0), row(0, sample=0)], r":2: the same question", "remove"),
        ([row(0), row(1, query="1 + 1?")], r":2: `q1` has another text", "--out"),
        ([row(1, expected="3")], r":1: `q1` has another text", "--out"),
        ([row(1, query_id="q7")], r":1: `q7` has another text", "--out"),
        ([row(1), row(0, 1.0, model="other")], r":2: λ=1 was answered by other, now by v-l100", "--out"),
    ],
)
def test_rollouts_of_something_else_are_refused_with_their_line(
    path: Path, rows: list[dict[str, Any]], says: str, hint: str
) -> None:
    """A double, a changed question or answer, a question that is gone, another model: file and line, and a way out."""
    write(path, *rows)
    with pytest.raises(MisuseError, match=rf"^{path}{says}") as caught:
        checked(path)
    assert hint in (caught.value.hint or "")


def test_rows_that_are_not_graded_yet_count_as_wrong(path: Path) -> None:
    """They can be read as rollouts; rows that are no rollouts are refused with their line."""
    ungraded = {key: value for key, value in row(1).items() if key != "correct"}
    write(path, row(0), ungraded)
    assert [(r.query_id, r.correct) for r in rollouts_of(path)] == [("q0", 1.0), ("q1", 0.0)]
    assert checked(path) == {("q0", 0.0, None, 0), ("q1", 0.0, None, 0)}
    write(path, {"query_id": "q2"})
    with pytest.raises(MisuseError, match=rf"^{path}:3"):
        list(rollouts_of(path))


@pytest.mark.parametrize("line", [b"[1]", b"3", b"{", b"[" * 100_000])
def test_lines_that_are_no_rollouts_are_refused(path: Path, line: bytes) -> None:
    """Other JSON, no JSON, and JSON that is nested too deep."""
    path.write_bytes(line + b"\n")
    with pytest.raises(MisuseError, match=rf"^{path}:1"):
        list(rollouts_of(path))


def test_rollouts_that_are_no_text_are_refused(path: Path) -> None:
    """Bytes that are not UTF-8 are one message."""
    path.write_bytes(b"\xff\n")
    with pytest.raises(MisuseError, match=r"UTF-8"):
        list(rollouts_of(path))


ROWS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 1.0]), st.integers(0, 3)), unique=True, max_size=8)


@settings(max_examples=12)
@given(ROWS, st.data())
def test_a_crash_anywhere_loses_at_most_the_last_append(
    tmp_path_factory: pytest.TempPathFactory, keys: list[tuple[int, float, int]], data: st.DataObject
) -> None:
    """Cut at any byte, the file goes on with every row that was whole, and ends as if nothing had happened."""
    path = tmp_path_factory.mktemp("crash") / "r.jsonl"
    rows = [row(number, lambda_, sample=sample) for number, lambda_, sample in keys]
    write(path, *rows)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    done = checked(path)
    assert len(done) == whole[:cut].count(b"\n")
    write(path, *(r for r in rows if (r["query_id"], r["lambda"], None, r["sample"]) not in done))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [False, True])
def test_the_file_is_closed_at_the_end(path: Path, monkeypatch: pytest.MonkeyPatch, damage: bool) -> None:
    """After a run, and where it is refused; the file is readable by others and writable by its owner."""
    handles: list[int] = []
    real = os.open

    def opened(place: Any, flags: int, *mode: int, **options: Any) -> int:
        handles.append(real(place, flags, *mode, **options))
        return handles[-1]

    write(path, row(0))
    assert path.stat().st_mode & 0o133 == 0
    monkeypatch.setattr(os, "open", opened)
    if damage:
        settings_path(path).unlink()
        refusal(path)
    else:
        write(path, row(1))
    for handle in handles:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)
    assert handles
