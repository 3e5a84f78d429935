"""Rollouts are written as answers arrive; nothing that is computed from them may depend on that order."""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_router.calibration.costs import tokens_of_rollouts
from dami_router.cli import main
from dami_router.errors import MisuseError
from dami_router.rollouts.folds import folds_of
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.records import Rollout, write_rollouts

COLUMNS = ((0.0, None), (0.3, None), (1.0, None), (1.0, 64), (1.0, 256))
FRACTION = st.floats(0, 1)


@st.composite
def rollouts(draw: st.DrawFn) -> list[Rollout]:
    """Answers to some queries, of which some share a text, with samples, caps and confidences; cells may be missing."""
    found = []
    for i in range(draw(st.integers(1, 5))):
        confidence, text = draw(st.none() | FRACTION), draw(st.sampled_from(["a", "B", "b ", "c"]))
        probe = None if confidence is None else draw(st.none() | st.integers(1, 16))
        for lambda_, cap in COLUMNS:
            for sample in range(draw(st.integers(0 if cap else 1, 3))):
                row = Rollout(f"q{i}", text, lambda_, draw(FRACTION), draw(st.floats(0, 1e6)), sample=sample, cap=cap)
                found.append(replace(row, confidence=confidence, probe_tokens=probe if sample else None))
    return found


def arranged(rows: list[Rollout]) -> dict[str, Any] | str:
    """A grid's arrays, or the error in their place."""
    try:
        return asdict(grid_of(rows, drop_incomplete=True))
    except MisuseError as error:
        return str(error)


@given(data=st.data())
def test_the_grid_is_the_same_to_the_last_bit(data: st.DataObject) -> None:
    """Any permutation of rows gives the same queries, means of samples, confidences and caps, or the same refusal."""
    rows = data.draw(rollouts())
    np.testing.assert_equal(arranged(data.draw(st.permutations(rows))), arranged(rows))


@given(data=st.data())
def test_measured_costs_are_the_same(data: st.DataObject) -> None:
    """Any permutation of rows gives the same tokens by λ and by query."""
    rows = data.draw(rollouts())
    assert tokens_of_rollouts(data.draw(st.permutations(rows))) == tokens_of_rollouts(rows)


@given(texts=st.lists(st.text("ab ", max_size=4), min_size=6, max_size=20), seed=st.integers(0, 9), data=st.data())
def test_a_query_keeps_its_fold(texts: list[str], seed: int, data: st.DataObject) -> None:
    """Any permutation of texts gives folds of the same texts."""

    def members(some: list[str]) -> list[list[str]] | str:
        try:
            return [sorted(some[row] for row in part) for part in folds_of(some, 3, seed=seed)]
        except MisuseError as error:
            return str(error)

    assert members(data.draw(st.permutations(texts))) == members(texts)


def made(count: int) -> list[Rollout]:
    """Noisy answers: the fewer the words, the more of them need λ = 1."""
    draw = random.Random(0)
    return [
        Rollout(f"q{i}", f"{'word ' * (i % 7)}{i}", x, float(draw.random() < x + i % 7 / 7), 10 + 90 * x, sample=k)
        for i in range(count)
        for x in (0.0, 0.5, 1.0)
        for k in (0, 1)
    ]


def test_the_commands_say_and_write_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`dami eval` prints the same figures, and `dami train` writes the same bytes, for the same rows shuffled."""
    rows, file, said = made(60), tmp_path / "r.jsonl", []
    for order in range(3):
        write_rollouts(rows, file)
        out = tmp_path / f"estimator{order}"
        for arguments in (["eval", file, "--json", "--folds", 3], ["train", file, "--out", out]):
            with pytest.raises(SystemExit):
                main([str(argument) for argument in arguments])
        written = {path.name: path.read_bytes() for path in out.iterdir()}
        said.append((capsys.readouterr().out.replace(out.name, "estimator"), written))
        random.Random(order).shuffle(rows)
    assert said[0] == said[1] == said[2]
    assert '"over_random_mixing_interval"' in said[0][0]
    assert len(said[0][1]) == 2
