"""The streaming core: any cut gives the same bits, and a fault in any thread ends the build, cleanly and at once."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.waiting import until
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builds import FAMILY, build, reshard, same_bits, tree, weights, write_pair
from support.pairs import Pair

from dami_merge.build import Options, build_family, chunks, compute, stream
from dami_merge.interpolation.formula import BlockInterpolator, interpolate
from dami_merge.recipes.recipe import parse_recipe
from dami_router.errors import CheckpointError, DamiError

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
THREADS = ("compute", "read", "write", "hash")
SHAPES = st.lists(st.sampled_from([(), (0,), (1,), (3, 0), (7,), (5, 13), (130,), (20, 9)]), min_size=1, max_size=10)


def tensors_of(shapes: list[tuple[int, ...]], dice: random.Random) -> Iterator[dict[str, torch.Tensor]]:
    """Yield both endpoints: tensors of these shapes, integers that agree, and a matrix that tells the two apart."""
    generator = torch.Generator().manual_seed(dice.randrange(1 << 30))
    dtypes = [dice.choice((*DTYPES, torch.int32, torch.uint8)) for _ in shapes]
    whole = [torch.randint(0, 200, shape, generator=generator) for shape in shapes]
    for _ in range(2):
        yield {"model.layers.0.w": torch.randn(8, 8, generator=generator)} | {
            f"model.layers.{i % 2}.t{i:02}": (
                torch.randn(shape, generator=generator, dtype=torch.float64) if dtype.is_floating_point else whole[i]
            ).to(dtype)
            for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
        }


class Slow(BlockInterpolator):
    """An interpolator that takes its time, so that whoever runs ahead of it would overwrite what it reads."""

    def write(self, *arguments: Any) -> None:
        """Wait, then compute."""
        time.sleep(0.0005)
        super().write(*arguments)


@settings(max_examples=12, deadline=None)
@given(
    shapes=SHAPES,
    seed=st.integers(0, 1 << 20),
    block=st.integers(20, 200),
    chunk=st.sampled_from([128, 512, 1000, 4096]),
    count=st.integers(1, 11),
    cast=st.sampled_from([{}, {"dtype": "float32"}, {"out_dtype": "bfloat16"}, {"dtype": "bfloat16"}]),
    shards=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_any_cut_gives_the_formulas_bits(
    shapes: list[tuple[int, ...]], seed: int, block: int, chunk: int, count: int, cast: dict[str, str],
    shards: tuple[int, int],
) -> None:  # fmt: skip
    """Chunks with no, one or many blocks, empty tensors, any dtypes, any shards: the formula's bits of the whole."""
    dice = random.Random(seed)
    lambdas = sorted({0, 1, *(round(dice.random(), 3) for _ in range(9))})[:count]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        sides = list(tensors_of(shapes, dice))
        pair = write_pair(Path(folder), *sides)
        for side, number in zip(pair, shards, strict=True):
            if number > 1:
                reshard(side, number)
        patch.setattr(chunks, "BLOCK", block)
        patch.setattr(stream, "chunk_size", lambda buffers: chunk)
        patch.setattr(compute, "BlockInterpolator", Slow)
        built = build(pair.recipe(0.5, family={"name": "Fam", "lambdas": lambdas}, **cast), Path(folder) / "out")
        for lambda_ in lambdas:
            found = weights(built.folder(lambda_))
            assert found.keys() == sides[0].keys()
            for name, instruct in sides[0].items():
                assert same_bits(found[name], expected(instruct, sides[1][name], lambda_, **cast)), name


def expected(
    a: torch.Tensor, b: torch.Tensor, lambda_: float, dtype: str | None = None, out_dtype: str | None = None
) -> torch.Tensor:
    """Return θ(λ) as the formula gives it for whole tensors; integers as they are."""
    if not a.dtype.is_floating_point:
        return a
    kind = getattr(torch, dtype) if dtype else a.dtype
    made = interpolate(a.to(kind), b.to(kind), lambda_)
    return made.to(getattr(torch, out_dtype)) if out_dtype else made


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A pair of 3 MB in six tensors; Thinking in two shards, so that one side is hashed on the way and one is not."""
    generator = torch.Generator().manual_seed(0)
    base = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(512, 512, generator=generator) for i in range(6)}
    sides = [{n: (t + 0.1 * torch.randn(t.shape)).bfloat16() for n, t in base.items()} for _ in "ab"]
    pair = write_pair(tmp_path_factory.mktemp("streamed"), *sides, num_hidden_layers=6)
    reshard(pair.thinking, 2)
    return pair


@pytest.fixture(scope="module")
def whole(streamed: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an undisturbed build."""
    return tree(build(streamed.recipe(0.5, family=FAMILY), tmp_path_factory.mktemp("whole") / "out").out)


def nth(real: Callable[..., Any], at: int, fault: Callable[[], Exception]) -> Callable[..., Any]:
    """Return `real` with a fault at its call number `at` and at every later one."""
    calls = itertools.count(1)

    def failing(*arguments: Any, **options: Any) -> Any:
        if next(calls) >= at:
            raise fault()
        return real(*arguments, **options)

    return failing


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Assert that a block ends within seconds with no open file, no thread and torch's own number of threads."""
    torch.set_num_threads(2)
    handles, started = set(Path("/proc/self/fd").iterdir()), time.perf_counter()
    yield
    assert time.perf_counter() - started < 30
    assert torch.get_num_threads() == 2
    assert set(Path("/proc/self/fd").iterdir()) == handles
    assert not [t.name for t in threading.enumerate() if t.name.startswith(THREADS)]


FAULTS: dict[str, tuple[Any, str, Callable[[], Exception], str]] = {
    "read": (os, "preadv", lambda: OSError(errno.EIO, "Input/output error"), r"safetensors: cannot be read: Input"),
    "compute": (BlockInterpolator, "write", lambda: CheckpointError("lane"), "lane"),
    "write": (os, "pwrite", lambda: OSError(errno.EIO, "Input/output error"), "Input/output error"),
    "full": (os, "pwrite", lambda: OSError(errno.ENOSPC, "No space left on device"), "no space left"),
    "sync": (os, "fsync", lambda: OSError(errno.EDQUOT, "Quota exceeded"), "no space left"),
}


@pytest.mark.parametrize("at", [1, 2, 5, 9])
@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_in_any_thread_ends_the_build(
    streamed: Pair, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, at: int
) -> None:
    """A lane, a reader, a writer or a sync that fails is one message; nothing half-made stays, and the next run ends
    with the bytes of an undisturbed one."""
    place, name, fault, message = FAULTS[what]
    monkeypatch.setattr(stream, "chunk_size", lambda buffers: 1 << 16)
    recipe, out = streamed.recipe(0.5, family=FAMILY), tmp_path / "out"
    with nothing_left_behind(), monkeypatch.context() as patch:
        patch.setattr(place, name, nth(getattr(place, name), at, fault))
        with pytest.raises(DamiError, match=message) as caught:
            build(recipe, out)
    assert caught.value.exit_code == 1
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(out.glob("Fam-*"))
    assert tree(build(recipe, out).out) == whole


def writes(path: Path) -> Callable[[int], Any]:
    """Return a progress that changes a byte of a file, in place and to the same size, when the first bytes are out."""
    left = [1]

    def advance(count: int) -> None:
        if left.pop() if left else 0:
            with path.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\x77")

    return lambda total: nullcontext(advance)


@pytest.mark.parametrize("again", [False, True], ids=["first", "resumed"])
@pytest.mark.parametrize("file", ["instruct/model.safetensors", "thinking/model-00001-of-00002.safetensors"])
def test_an_endpoint_that_changes_while_it_is_read_is_refused(
    streamed: Pair, tmp_path: Path, file: str, again: bool
) -> None:
    """Hashed on the way, after the build or in a run before: weights are never noted as made from another content."""
    for side in streamed:
        shutil.copytree(side, tmp_path / side.name)
    pair = Pair(tmp_path / "instruct", tmp_path / "thinking")
    recipe, out = pair.recipe(0.5, family=FAMILY), tmp_path / "out"
    if again:
        build(recipe, out, only=(0.5,))
    with pytest.raises(CheckpointError, match=f"{file}: changed while it was read"):
        build_family(parse_recipe(recipe), out, Options(), progress=writes(tmp_path / file))
    assert [path.name for path in out.glob("Fam-*")] == (["Fam-l050"] if again else [])
    made = tree(build(recipe, out).out)
    assert made == tree(build(recipe, tmp_path / "fresh").out)


def test_an_interrupt_in_the_middle_says_stopped(tmp_path: Path) -> None:
    """Ctrl-C while shards are written: one line, exit code 130, no temporary file; the next run goes on."""
    sides = [{f"model.layers.{i}.x": torch.full((1 << 21,), float(n + i)) for i in range(2)} for n in (1, 2)]
    pair = write_pair(tmp_path, *sides)
    recipe, out = tmp_path / "recipe.yml", tmp_path / "out"
    recipe.write_text(pair.recipe(0.5, family={"name": "Fam", "lambdas": [i / 20 for i in range(21)]}))
    command = [sys.executable, "-c", "from dami_router.cli import main; main()", "build", str(recipe), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: process.poll() is not None or list(out.glob(".dami_build/*/*.tmp")), pause=0.001)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, said.splitlines()[-1]) == (130, "stopped"), said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(out.glob("Fam-*"))
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["built"]) == 21
