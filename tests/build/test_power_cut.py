"""What a build has on the disk, and when: nothing is noted, placed or listed before it would survive a power cut."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from fakes.disk import Disk
from support.builds import build
from support.pairs import Pair


def test_weights_are_on_the_disk_before_the_journal_says_so(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write, sync, rename, journal, for every weight file; then the variants, then the manifest that lists them."""
    disk, out = Disk(monkeypatch, tmp_path), tmp_path / "out"
    family = {"name": "Fam", "lambdas": [0, 0.25, 1]}
    build(pair.recipe(0.5, dtype="bfloat16", family=family), out, max_shard_size=20_000)
    noted: dict[str, tuple[int, str]] = {}
    for number, deed in enumerate(disk.deeds):
        if deed.kind == "sync" and deed.path.name == "journal.jsonl":
            assert isinstance(deed.content, bytes)
            for line in filter(None, deed.content.splitlines()):
                noted.setdefault(json.loads(line)["file"], (number, json.loads(line)["sha256"]))
    assert len(noted) >= 6
    for name, (number, sha256) in noted.items():
        target = out / ".dami_build" / name
        renamed = disk.index("rename", target)
        source = disk.deeds[renamed].path
        synced = disk.index("sync", source)
        content = disk.deeds[synced].content
        assert isinstance(content, bytes)
        assert hashlib.sha256(content).hexdigest() == sha256
        assert synced < renamed < number
    manifest = disk.index("rename", out / "dami_family.json")
    for variant in ("Fam-l000", "Fam-l025", "Fam-l100"):
        placed = disk.index("rename", out / variant)
        assert any(d.kind == "sync" and d.path == out for d in disk.deeds[placed:manifest]), variant


def test_a_power_cut_after_a_build_loses_nothing(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Family, manifest and journal are synced with their names, and so is what others put into a replaced variant."""
    disk, out = Disk(monkeypatch, tmp_path), tmp_path / "out"
    for path in ("uniform", "late(1)"):
        build(pair.recipe(0.5, dtype="bfloat16", family={"name": "Fam", "lambdas": [0, 0.3], "path": path}), out)
        lost = [file for file in out.rglob("*") if file.is_file() and file.name != "lock" and not disk.holds(file)]
        assert [str(file.relative_to(out)) for file in lost] == []
        (out / "Fam-l030" / "README.md").write_text("scores of mine")
    assert (out / "Fam-l030" / "README.md").read_text() == "scores of mine"
