"""Python code beside an endpoint: left out and said, or carried over unread when asked to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.builds import Built, build
from support.pairs import Pair, make_pair

from dami_merge.verify import verify_family
from dami_router.errors import CheckpointError
from dami_router.manifest.family import load_family

FAMILY = {"name": "Fam", "lambdas": [0.5, 1]}
CODE = b"raise SystemExit('this file was run')\n"


@pytest.fixture
def coded(tmp_path: Path) -> Pair:
    """A pair whose endpoints bring Python files along, named by their configs."""
    pair = make_pair(tmp_path / "pair", "qwen3", layers=2)
    for side in pair:
        for name in ("config.json", "tokenizer_config.json"):
            change(side / name, auto_map={"AutoConfig": "configuration_x.XConfig"})
        (side / "processor_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": "p.P"}, "size": 3}))
        (side / "configuration_x.py").write_bytes(CODE + side.name.encode())
    return pair


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def read(built: Built, name: str) -> dict[str, Any]:
    return dict(json.loads((built.folder(0.5) / name).read_text()))


def test_code_is_left_out_and_said(coded: Pair, tmp_path: Path) -> None:
    """No Python file and no entry that names one; the build, the manifest and verify all say so."""
    built = build(coded.recipe(0.5, family=FAMILY), tmp_path / "out")
    assert not list(built.out.rglob("*.py"))
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        assert "auto_map" not in read(built, name)
    assert read(built, "processor_config.json") == {"size": 3}
    assert any("`configuration_x.XConfig`" in w and "leaves out" in w for w in built.report.warnings)
    assert load_family(built.out).custom_code == "left out"
    report = verify_family(built.out)
    assert report.all_problems == []
    assert any("Python code that the variants do not carry" in note for note in report.notes)


def test_code_is_carried_over_unread(coded: Pair, tmp_path: Path) -> None:
    """With --trust-remote-code Instruct's files and entries come along, with their hashes in the manifest."""
    built = build(coded.recipe(0.5, family=FAMILY), tmp_path / "out", trust_remote_code=True)
    content = (built.folder(0.5) / "configuration_x.py").read_bytes()
    assert content == CODE + b"instruct"
    family = load_family(built.out)
    assert family.custom_code == "carried"
    assert family.variants[0].files["configuration_x.py"] == hashlib.sha256(content).hexdigest()
    assert read(built, "config.json")["auto_map"] == {"AutoConfig": "configuration_x.XConfig"}
    assert any("whoever loads them may run that code" in w for w in built.report.warnings)
    report = verify_family(built.out)
    assert report.all_problems == []
    assert any("which were not inspected" in note for note in report.notes)
    (built.folder(1) / "configuration_x.py").write_text("pass")
    (built.folder(1) / "other.py").write_text("pass")
    assert {(p.code, p.file) for p in verify_family(built.out).all_problems} == {
        ("hash", "configuration_x.py"), ("stranger", "other.py"),
    }  # fmt: skip


def test_a_build_without_the_flag_takes_the_code_away(coded: Pair, tmp_path: Path) -> None:
    """Built again with and without the flag, a family is as if it had been built so from the start."""
    recipe = coded.recipe(0.5, family=FAMILY)
    build(recipe, tmp_path / "out", trust_remote_code=True)
    built = build(recipe, tmp_path / "out")
    assert built.report.bytes_written == 0
    assert not list(built.out.glob("Fam-*/*.py"))
    assert verify_family(built.out).all_problems == []


def test_a_link_to_code_elsewhere_is_refused(coded: Pair, tmp_path: Path) -> None:
    """A Python file that is a link out of the checkpoint's folder is not copied."""
    (coded.instruct / "hidden.py").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match=r"hidden\.py is a link"):
        build(coded.recipe(0.5, family=FAMILY), tmp_path / "out", trust_remote_code=True)
    assert not (tmp_path / "out").exists()


def test_a_pair_without_code_says_nothing(tmp_path: Path) -> None:
    """The manifest of a family without custom code has no such key, as before."""
    pair = make_pair(tmp_path / "pair", "qwen3", layers=2)
    built = build(pair.recipe(0.5, family=FAMILY), tmp_path / "out", trust_remote_code=True)
    assert "custom_code" not in json.loads((built.out / "dami_family.json").read_text())
    assert built.report.warnings == ()
