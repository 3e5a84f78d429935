"""Killed at any moment, on a full disk or beside another build: the next run ends with the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import forks
from support.builds import FAMILY, build, reshard, tree, write_pair
from support.pairs import Pair, make_pair

from dami_merge.build.workspace import Workspace
from dami_merge.files.locking import locked
from dami_merge.verify import verify_family
from dami_router.errors import FailureError

KILLED = signal.SIGKILL  # the low bits of a wait status


class Forks:
    """Builds in forked processes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, forks.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._line() == "ready"

    def start(self, **order: Any) -> int:
        """Begin a build and return its pid."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order, default=str) + "\n")
        self._process.stdin.flush()
        return int(self._line())

    def status(self) -> int:
        """Wait for the build that was begun and return its wait status."""
        return int(self._line())

    def run(self, **order: Any) -> int:
        """Begin a build and wait for it."""
        self.start(**order)
        return self.status()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="module")
def forked() -> Iterator[Forks]:
    """The process that forks builds."""
    process = Forks()
    yield process
    process.close()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tiny pair in two shards each."""
    pair = make_pair(tmp_path_factory.mktemp("sharded"), layers=2)
    for side in pair:
        reshard(side, 2)
    return pair


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A pair of 8 MB in one file: large enough to be killed in the middle of."""
    generator = torch.Generator().manual_seed(0)
    base = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(1024, 1024, generator=generator) for i in range(4)}
    sides = [
        {n: (t + 0.1 * torch.randn(t.shape, generator=generator)).bfloat16() for n, t in base.items()} for _ in "ab"
    ]
    return write_pair(tmp_path_factory.mktemp("large"), *sides, num_hidden_layers=4)


def written(recipe: str, path: Path) -> Path:
    path.write_text(recipe)
    return path


def check_nothing_unfinished_looks_finished(out: Path, whole: dict[str, bytes]) -> None:
    """Whatever is at a finished variant's place has the undisturbed build's bytes."""
    for path, content in tree(out).items():
        if not path.startswith(".dami_build") and path != "dami_family.json":
            assert content == whole[path], path
    for folder in out.iterdir() if out.exists() else ():
        if folder.is_dir() and folder.name != ".dami_build":
            assert {f"{folder.name}/{p.name}" for p in folder.iterdir()} == {
                name for name in whole if name.startswith(f"{folder.name}/")
            }
    if (out / "dami_family.json").exists():
        assert verify_family(out).all_problems == []


def test_killed_at_every_file_operation(forked: Forks, sharded: Pair, tmp_path: Path) -> None:
    """SIGKILL at each open, write, sync, link and rename of a build: the next run ends with the same bytes."""
    family = {"name": "Fam", "lambdas": [0, 0.3, 1]}
    recipe = written(sharded.recipe(0.5, dtype="bfloat16", family=family), tmp_path / "recipe.yml")
    whole = tree(build(recipe.read_text(), tmp_path / "whole", str(recipe)).out)
    at, kills = 1, 0
    while True:
        out = tmp_path / f"killed-{at}"
        status = forked.run(recipe=recipe, out=out, kill_at=at, log=tmp_path / "log")
        if status == 0:
            break
        kills += 1
        assert status == KILLED
        check_nothing_unfinished_looks_finished(out, whole)
        assert forked.run(recipe=recipe, out=out, log=tmp_path / "log") == 0, (tmp_path / "log").read_text()
        assert tree(out) == whole, f"killed at operation {at}"
        at += 1 if at < 16 else 4
    assert kills > 25


def test_killed_while_variants_are_replaced(forked: Forks, sharded: Pair, tmp_path: Path) -> None:
    """SIGKILL while a changed recipe replaces variants: each place holds the old or the new one, whole, or none."""
    before = sharded.recipe(0.5, dtype="bfloat16", family={"name": "Fam", "lambdas": [0, 0.3, 0.9]})
    after = sharded.recipe(0.5, dtype="bfloat16", family={"name": "Fam", "lambdas": [0, 0.3], "path": "late(1)"})
    recipe = written(after, tmp_path / "recipe.yml")
    old = tree(build(before, tmp_path / "old").out)
    whole = tree(build(after, tmp_path / "whole").out) | {n: c for n, c in old.items() if n.startswith("Fam-l090")}
    at, kills = 1, 0
    while True:
        out = build(before, tmp_path / f"killed-{at}").out
        if forked.run(recipe=recipe, out=out, kill_at=at, log=tmp_path / "log") == 0:
            break
        kills += 1
        for folder in out.glob("Fam-*"):
            found = {f"{folder.name}/{p.name}": p.read_bytes() for p in folder.iterdir()}
            assert found in [{n: c for n, c in t.items() if n.startswith(folder.name)} for t in (old, whole)]
        assert forked.run(recipe=recipe, out=out, log=tmp_path / "log") == 0, (tmp_path / "log").read_text()
        ended = tree(out)
        ended[".dami_build/journal.jsonl"] = whole[".dami_build/journal.jsonl"]  # it also remembers λ=0.9
        assert ended == whole, f"killed at operation {at}"
        at += 3
    assert kills > 10


def test_killed_at_random_moments_again_and_again(forked: Forks, large: Pair, tmp_path: Path) -> None:
    """A build that is killed at random moments, each run going on from the last, ends the same."""
    recipe = written(large.recipe(0.5, family=FAMILY), tmp_path / "recipe.yml")
    started = time.perf_counter()
    whole = tree(build(recipe.read_text(), tmp_path / "whole", str(recipe)).out)
    duration = time.perf_counter() - started
    dice, kills, finished = random.Random(0), 0, 0
    runs = 0
    while runs < 14 or kills < 3:
        runs += 1
        out = tmp_path / f"out-{finished}"
        child = forked.start(recipe=recipe, out=out, log=tmp_path / "log")
        time.sleep(dice.uniform(0, duration))
        with contextlib.suppress(ProcessLookupError):  # it was faster
            os.kill(child, signal.SIGKILL)
        status = forked.status()
        check_nothing_unfinished_looks_finished(out, whole)
        if status == 0:
            assert tree(out) == whole
            finished += 1
            duration *= 0.8  # the machine was slower when it was measured
        else:
            assert status == KILLED
            kills += 1
    out = tmp_path / f"out-{finished}"
    assert forked.run(recipe=recipe, out=out, log=tmp_path / "log") == 0
    assert tree(out) == whole


def test_finished_weights_are_not_written_again(forked: Forks, sharded: Pair, tmp_path: Path) -> None:
    """After a kill, weight files that were finished are taken as they are: same inode, same time."""
    family = {"name": "Fam", "lambdas": [0, 0.3, 1]}
    recipe = written(sharded.recipe(0.5, dtype="bfloat16", family=family), tmp_path / "recipe.yml")
    out = tmp_path / "out"
    at = 10
    while not (finished := list((out / ".dami_build").glob("*/*.safetensors"))) or len(finished) < 3:
        assert forked.run(recipe=recipe, out=out, kill_at=at, log=tmp_path / "log") == KILLED
        at += 4
    before = {path.name + path.parent.name: path.stat() for path in finished}
    journal = (out / ".dami_build/journal.jsonl").read_text()
    noted = {p for p in finished if f'"{p.parent.name}/{p.name}"' in journal}
    assert noted
    assert forked.run(recipe=recipe, out=out, log=tmp_path / "log") == 0
    for path in noted:
        now, was = (out / path.parent.name / path.name).stat(), before[path.name + path.parent.name]
        assert (now.st_ino, now.st_mtime_ns) == (was.st_ino, was.st_mtime_ns)


def test_full_disk_is_one_message_and_the_next_run_goes_on(forked: Forks, large: Pair, tmp_path: Path) -> None:
    """A write that the disk has no room for stops the build with one message; with room, the same bytes."""
    recipe = written(large.recipe(0.5, family={"name": "Fam", "lambdas": [0.5, 1]}), tmp_path / "recipe.yml")
    out, log = tmp_path / "out", tmp_path / "log"
    status = forked.run(recipe=recipe, out=out, file_limit=3 << 20, log=log)
    assert os.waitstatus_to_exitcode(status) == 1
    assert "no space left" in log.read_text()
    assert "run the same command again" in log.read_text()
    assert not list(out.glob("*.safetensors")) if out.exists() else True
    assert not list(tmp_path.rglob("*.tmp"))
    assert forked.run(recipe=recipe, out=out, log=log) == 0
    assert tree(out) == tree(build(recipe.read_text(), tmp_path / "whole", str(recipe)).out)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_small_disk(forked: Forks, large: Pair, small_disk: Path, tmp_path: Path) -> None:
    """Too little space is said before the first byte; a disk that fills up on the way is said when it does."""
    recipe = written(large.recipe(0.5, family={"name": "Fam", "lambdas": [0.5, 1]}), tmp_path / "recipe.yml")
    out, log = small_disk / "out", tmp_path / "log"
    assert os.waitstatus_to_exitcode(forked.run(recipe=recipe, out=out, log=log)) == 1
    assert "not enough space: the build writes 16.8 MB" in log.read_text()
    assert not out.exists()
    assert os.waitstatus_to_exitcode(forked.run(recipe=recipe, out=out, lie_about_space=True, log=log)) == 1
    assert "no space left" in log.read_text()
    assert not list(small_disk.rglob("*.safetensors"))
    # One variant at a time still fits.
    assert forked.run(recipe=recipe, out=out, options={"only": [0.5]}, log=log) == 0
    assert verify_family(out).all_problems == []


def test_two_builds_do_not_share_a_folder(pair: Pair, tmp_path: Path) -> None:
    """While one build holds a folder, another one is told so and changes nothing."""
    recipe = pair.recipe(0.5, dtype="bfloat16", family=FAMILY)
    out = build(recipe, tmp_path / "out", only=(0.5,)).out
    before = tree(out)
    with locked(Workspace(out).lock, out), pytest.raises(FailureError, match="another build or download is at work"):
        build(recipe, out)
    assert tree(out) == before
    build(recipe, out)


def test_torn_journal_line_is_no_record(pair: Pair, tmp_path: Path) -> None:
    """A journal that was cut in the middle of a line, or holds nonsense, makes files be built again, not trusted."""
    recipe = pair.recipe(0.5, dtype="bfloat16", family=FAMILY)
    out = build(recipe, tmp_path / "out").out
    whole = tree(out)
    journal = out / ".dami_build/journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-40] + b"\n[1, 2]\nnull\n\xff\xfe")
    report = build(recipe, out).report
    assert report.built == ("Fam-l100",)
    assert tree(out) == whole
