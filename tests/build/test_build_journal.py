"""The journal of finished weight files: what it remembers, also after a crash; and the lock beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes.disk import Disk
from hypothesis import given
from hypothesis import strategies as st

from dami_merge.build.build_journal import BuildJournal, Record, content_key
from dami_merge.files.locking import locked
from dami_router.errors import FailureError

ONE, TWO = Record("from-1", "1" * 64), Record("from-2", "2" * 64)


def test_records_are_found_again_by_variant_and_file(tmp_path: Path) -> None:
    """By another process as by this one; the last record of a file counts."""
    path = tmp_path / "journal.jsonl"
    journal = BuildJournal(path)
    assert journal.get("v-l000", "a.safetensors") is None
    journal.add("v-l000", "a.safetensors", ONE)
    journal.add("v-l000", "b.safetensors", ONE)
    journal.add("v-l100", "a.safetensors", ONE)
    journal.add("v-l100", "a.safetensors", TWO)
    for known in (journal, BuildJournal(path)):
        assert known.get("v-l000", "a.safetensors") == ONE
        assert known.get("v-l100", "a.safetensors") == TWO
        assert known.get("v-l100", "b.safetensors") is None


def test_a_variant_is_known_by_its_whole_name(tmp_path: Path) -> None:
    """`v-l0` is not known because `v-l000` is."""
    journal = BuildJournal(tmp_path / "journal.jsonl")
    journal.add("v-l000", "a.safetensors", ONE)
    assert journal.knows("v-l000")
    assert not journal.knows("v-l0")
    assert not journal.knows("a.safetensors")


@pytest.mark.parametrize(
    "torn",
    [b'{"file": "v/b.safetensors", "made_f', b"\xff\xfe", b"[]", b"3", b"[" * 100_000, b'{"file": "v/b.safetensors"}',
     b'{"file": "v/b.safetensors", "sha256": "x"}', b'{"made_from": "x", "sha256": "x"}', b"\0" * 512],
)  # fmt: skip
def test_a_torn_line_is_no_record_and_swallows_none(tmp_path: Path, torn: bytes) -> None:
    """Whatever a crash left at the end: the lines before it count, and so does what is added after it."""
    path = tmp_path / "journal.jsonl"
    BuildJournal(path).add("v", "a.safetensors", ONE)
    path.write_bytes(path.read_bytes() + torn)
    journal = BuildJournal(path)
    assert journal.get("v", "b.safetensors") is None
    journal.add("v", "c.safetensors", TWO)
    again = BuildJournal(path)
    assert (again.get("v", "a.safetensors"), again.get("v", "c.safetensors")) == (ONE, TWO)
    assert again.get("v", "b.safetensors") is None


def test_tidying_makes_the_same_bytes_whatever_way_led_there(tmp_path: Path) -> None:
    """Sorted, one line for a record, nothing torn; and read again it is the same."""
    for name, order in (("a", [("v", ONE), ("w", ONE), ("v", TWO)]), ("b", [("w", ONE), ("v", TWO)])):
        journal = BuildJournal(tmp_path / name)
        for variant, record in order:
            journal.add(variant, "x.safetensors", record)
        journal.tidy()
    lines = (tmp_path / "a").read_bytes()
    assert lines == (tmp_path / "b").read_bytes()
    assert [json.loads(line)["file"] for line in lines.splitlines()] == ["v/x.safetensors", "w/x.safetensors"]
    assert json.loads(lines.splitlines()[0]) == {"file": "v/x.safetensors", "made_from": "from-2", "sha256": "2" * 64}
    assert BuildJournal(tmp_path / "a").get("v", "x.safetensors") == TWO


def test_a_record_is_on_the_disk_when_it_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line is synced, and with the first one the journal's own name."""
    disk, path = Disk(monkeypatch, tmp_path), tmp_path / "journal.jsonl"
    journal = BuildJournal(path)
    journal.add("v", "a.safetensors", ONE)
    assert disk.kinds() == [("sync", "journal.jsonl"), ("sync", tmp_path.name)]
    assert disk.holds(path)
    journal.add("v", "b.safetensors", TWO)
    assert disk.kinds()[2:] == [("sync", "journal.jsonl")]
    assert disk.holds(path)
    journal.tidy()
    assert disk.holds(path)


def test_two_builds_do_not_work_in_one_folder(tmp_path: Path) -> None:
    """The second is refused while the first holds the lock, however that one ends, and goes on afterwards."""
    lock = tmp_path / "lock"

    def second() -> None:
        with locked(lock, tmp_path):
            pass

    def first() -> None:
        with locked(lock, tmp_path):
            with pytest.raises(FailureError) as refused:
                second()
            found.append(refused.value)
            raise KeyboardInterrupt

    found: list[FailureError] = []
    with pytest.raises(KeyboardInterrupt):
        first()
    (error,) = found
    assert str(tmp_path) in error.message
    assert "another build" in error.message
    assert "wait" in (error.hint or "")
    with locked(lock, tmp_path):
        assert lock.exists()


def test_a_lock_file_is_not_for_everybody_to_write(tmp_path: Path) -> None:
    """It can be read by others and written by its owner alone, and is not emptied by who waits for it."""
    lock = tmp_path / "lock"
    lock.write_text("kept")
    with locked(lock, tmp_path):
        assert lock.read_text() == "kept"
    with locked(tmp_path / "new", tmp_path):
        assert (tmp_path / "new").stat().st_mode & 0o133 == 0


Facts = dict[str, object]
JSON = st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4) | st.lists(st.integers()), max_size=4)


@given(JSON, JSON, st.randoms(use_true_random=False))
def test_a_key_stands_for_its_facts_in_any_order(
    facts: dict[str, object], other: dict[str, object], random: object
) -> None:
    """The same facts have the same key, other facts another one."""
    items = list(facts.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    key = content_key(facts)
    assert content_key(dict(items)) == key
    assert (content_key(other) == key) == (other == facts)
    assert len(bytes.fromhex(key)) == 32


def test_a_key_of_what_is_no_number_is_refused() -> None:
    """NaN is equal to nothing, itself included, and would be written as no JSON."""
    with pytest.raises(ValueError, match="JSON compliant"):
        content_key({"lambda": float("nan")})
