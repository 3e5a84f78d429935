"""What happens where memory ends: one row is lost, or a merge is done without, and the rest goes on."""

from __future__ import annotations

import functools
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.live import make_live_pair

from dami_merge.live import Engine, Generation

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory this way")


def alone(test: Callable[[Path], None]) -> Callable[[Path], None]:
    """Run a test in a process of its own: what other tests have freed is room that a limit does not see."""

    @functools.wraps(test)
    def run(tmp_path: Path) -> None:
        if os.environ.get("DAMI_TEST_ALONE"):
            test(tmp_path)
            return
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        env |= {"DAMI_TEST_ALONE": "1", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, f"{__file__}::{test.__name__}"], env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@contextmanager
def little_memory(headroom: int) -> Iterator[None]:
    """Let this process map no more than `headroom` bytes on top of what it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + headroom, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@alone
def test_out_of_memory_costs_the_newest_row_only(tmp_path: Path) -> None:
    """A prompt too large for the memory that is left fails; the rows before it write what they would have."""
    wide = make_live_pair(tmp_path, max_position_embeddings=9000, intermediate_size=8192, num_hidden_layers=1)
    engine = Engine.load(str(wide.instruct), str(wide.thinking), prefill=9000)
    asked = [Generation([i + 1, 2], 0.5, max_new_tokens=6, ignore_eos=True) for i in range(2)]
    expected = engine.complete(asked)
    rows = [engine.add(generation) for generation in asked]
    events = engine.step()
    # The widest layer alone would take 6,000 × 2 × 8,192 numbers: 393 MB.
    big = engine.add(Generation([3] * 6000, 0.5))
    with little_memory(64 << 20):
        failure, *late = engine.step()
    assert (failure.row, failure.token, failure.finish_reason) == (big, None, "error")
    assert "out of memory with 3 rows" in (failure.error or "")
    events += late
    while engine.busy:
        events += engine.step()
    for row, whole in zip(rows, expected, strict=True):
        assert tuple(event.token for event in events if event.row is row) == whole.tokens


@alone
def test_a_merge_that_finds_no_memory_is_done_without(tmp_path: Path) -> None:
    """Where the buffer of a merge has no room, `auto` goes on with both endpoints and the row never knows."""
    large = make_live_pair(tmp_path, hidden_size=512, intermediate_size=8192, num_hidden_layers=2)
    engine = Engine.load(str(large.instruct), str(large.thinking))
    generation = Generation([1, 2], 0.5, max_new_tokens=16, ignore_eos=True)
    engine.add(generation)
    # The buffer would take 25 million numbers: 101 MB, in parts of 17 MB.
    with little_memory(8 << 20):
        events = [event for _ in range(16) for event in engine.step()]
    assert events[-1].finish_reason == "length"
    assert engine.model.nbytes["merged"] == 0  # type: ignore[attr-defined]
    assert tuple(event.token for event in events) == engine.complete([generation])[0].tokens
