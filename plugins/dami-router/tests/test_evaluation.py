"""Rollouts, their evaluation, the quantile map and the nearest variant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dami_router.choosing.policy import nearest
from dami_router.errors import MisuseError
from dami_router.estimators.quantile import QuantileMap
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.grid import Figure, Grid, Point, dominated
from dami_router.rollouts.records import Rollout, read_rollouts, write_rollouts

UNIT = st.floats(0.0, 1.0)
LINE = {"query_id": "q1", "query": "1+1", "lambda": 0.5, "correct": True, "tokens": 7}


def rollout(query: str, lambda_: float, correct: float, tokens: int) -> Rollout:
    return Rollout(query, query, lambda_, correct, tokens, think=tokens > 5)


def grid() -> Grid:
    """Two queries, three variants: q1 needs λ=1, q2 is right everywhere."""
    made = grid_of(
        [
            rollout("q1", 0.0, 0, 2),
            rollout("q1", 0.5, 0, 10),
            rollout("q1", 1.0, 1, 20),
            rollout("q2", 1.0, 1, 30),
            rollout("q2", 0.0, 1, 2),
            rollout("q2", 0.5, 1, 12),
        ]
    )
    return made.rows(np.argsort(made.queries))


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_rollouts_survive_a_file(tmp_path: Path, name: str) -> None:
    """What is written reads back equal, and the same rollouts give the same bytes."""
    made = [rollout("q", 0.25, 1, 3), Rollout("r", "é∂", 1.0, 0.5, 4, model="m", answer="a", latency_s=0.1)]
    write_rollouts(made, tmp_path / name)
    first = (tmp_path / name).read_bytes()
    write_rollouts(made, tmp_path / name)
    assert list(read_rollouts(tmp_path / name)) == made
    assert (tmp_path / name).read_bytes() == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lambda": 1.5}, "`lambda` expects a number in"),
        ({"correct": "yes"}, "`correct` expects a number in"),
        ({"tokens": -1}, "`tokens` expects a number of at least 0"),
        ({"tokens": float("nan")}, "`tokens` expects"),
        ({"sample": 1.5}, "`sample` expects a whole number"),
        ({"cap": -1}, "`cap` expects a number of at least 0"),
        ({"lambda": None}, "`lambda` expects"),
    ],
)
def test_what_is_no_rollout_names_its_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    """A wrong field is one message with file, line and what was expected."""
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(LINE) + "\n\n" + json.dumps({**LINE, **change}) + "\n")
    with pytest.raises(MisuseError) as caught:
        list(read_rollouts(path))
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)


def test_a_misspelled_field_is_named(tmp_path: Path) -> None:
    """Where a required field is missing, the unknown field that is nearly its name is suggested."""
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"token" if key == "tokens" else key: value for key, value in LINE.items()}))
    with pytest.raises(MisuseError, match="lacks tokens") as caught:
        list(read_rollouts(path))
    assert caught.value.hint == "is `token` it?"


def test_rollouts_of_other_tools_are_read(tmp_path: Path) -> None:
    """A byte-order mark and mean tokens are accepted; unknown fields are ignored, and reported once for the file."""
    path = tmp_path / "r.jsonl"
    rows = [{**LINE, "query_id": str(i), "tokens": 1.5 + i, "confidense": 1, "run": {}} for i in range(3)]
    path.write_text("\ufeff" + "".join(json.dumps(row) + "\n" for row in rows))
    told: list[str] = []
    found = list(read_rollouts(path, told.append))
    assert [row.tokens for row in found] == [1.5, 2.5, 3.5]
    assert told == [f"{path}:1: unknown fields are ignored: `confidense`, `run` (did you mean `confidence`?)"]
    write_rollouts(found, path)
    assert list(read_rollouts(path, told.append)) == found
    assert len(told) == 1


def test_answers_with_a_cap_are_apart(tmp_path: Path) -> None:
    """A cap makes another column of the same query, by λ and cap; it is no variant, and must be complete like one."""
    rows = [Rollout("q", "t", x, 1, 10 * x) for x in (1.0, 0.0)]
    rows += [Rollout("q", "t", 1.0, 0.5, 7, cap=cap) for cap in (64, 8)]
    write_rollouts(rows, tmp_path / "r.jsonl")
    found = grid_of(read_rollouts(tmp_path / "r.jsonl"))
    assert found.lambdas == (0.0, 1.0)
    assert found.capped is not None
    assert (found.capped.settings, found.capped.tokens.tolist()) == (((1.0, 8), (1.0, 64)), [[7.0, 7.0]])
    assert found.rows([0]).capped is not None
    more = [Rollout("r", "u", x, 1, 1) for x in (0.0, 1.0)]
    with pytest.raises(MisuseError, match="`r` has no rollout at λ=1 with cap 8"):
        grid_of([*rows, *more])
    with pytest.raises(MisuseError, match="every rollout has a cap"):
        grid_of(rows[2:])


def test_unreadable_rollouts_are_refused(tmp_path: Path) -> None:
    """A missing file, no JSON, a list, a missing field and a broken archive are each one message."""
    (tmp_path / "a.jsonl").write_text("{")
    (tmp_path / "b.jsonl").write_text("[1]")
    (tmp_path / "c.jsonl").write_text('{"query_id": 1}')
    (tmp_path / "d.jsonl.gz").write_bytes(b"not gzip")
    for name in ("a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl.gz", "none.jsonl"):
        with pytest.raises(MisuseError):
            list(read_rollouts(tmp_path / name))


def test_points_are_looked_up() -> None:
    """Static, routed and oracle points are the means of the chosen cells."""
    made = grid()
    assert made.lambdas == (0.0, 0.5, 1.0)
    thinking = made.static(1.0)
    assert (thinking.accuracy.mean, thinking.tokens.mean, thinking.think_share) == (1.0, 25.0, 1.0)
    routed = made.routed([1.0, 0.0])
    assert (routed.accuracy.mean, routed.tokens.mean, routed.mean_lambda) == (1.0, 11.0, 0.5)
    assert made.oracle() == [1.0, 0.0]


@given(rows=st.lists(st.lists(st.tuples(UNIT, st.integers(0, 99)), min_size=3, max_size=3), min_size=1, max_size=8))
@settings(deadline=None)
def test_no_choice_beats_the_oracle(rows: list[list[tuple[float, int]]]) -> None:
    """The oracle is at least as accurate as every static variant, and its interval holds its mean."""
    made = grid_of(
        rollout(str(q), i / 2, correct, tokens) for q, row in enumerate(rows) for i, (correct, tokens) in enumerate(row)
    )
    oracle = made.routed(made.oracle())
    assert all(oracle.accuracy.mean >= made.static(x).accuracy.mean - 1e-12 for x in made.lambdas)
    assert oracle.accuracy.low <= oracle.accuracy.mean + 1e-12
    assert oracle.accuracy.mean <= oracle.accuracy.high + 1e-12


def test_incomplete_rollouts_are_refused() -> None:
    """A query that a variant did not answer, or answered twice, is named."""
    with pytest.raises(MisuseError, match=r"`q2` has no rollout at λ=0\.5"):
        grid_of([rollout("q1", 0, 1, 1), rollout("q1", 0.5, 1, 1), rollout("q2", 0, 1, 1)])
    with pytest.raises(MisuseError, match="two rollouts"):
        grid_of([rollout("q1", 0, 1, 1), rollout("q1", 0, 1, 1)])
    with pytest.raises(MisuseError, match="no rollouts"):
        grid_of([])


def test_dominated_points_are_found() -> None:
    """A point is dominated by one that is better in one respect and no worse in the other; equals are not."""

    def point(accuracy: float, tokens: float) -> Point:
        return Point(Figure(accuracy, 0, 1), Figure(tokens, 0, 1), 0.0, 0.0)

    points = [point(0.5, 10), point(0.6, 8), point(0.6, 8), point(0.9, 20), point(0.9, 21)]
    assert dominated(points) == [True, False, False, False, True]


@given(
    scores=st.lists(UNIT, min_size=50, max_size=200, unique=True),
    share=st.floats(0.05, 0.95),
    largest=st.floats(0.1, 1.0),
)
def test_the_map_meets_the_wanted_mean(scores: list[float], share: float, largest: float) -> None:
    """On the queries it was fitted on, the mean λ is the wanted one, and none is above the largest."""
    mean = share * largest
    fitted = QuantileMap.fit(scores, mean, largest)
    assert max(map(fitted, scores)) <= largest
    values = [fitted(score) for score in scores]
    assert sum(values) / len(values) == pytest.approx(mean, abs=0.02)


@given(scores=st.lists(UNIT, min_size=1, max_size=50), mean=st.floats(0.01, 0.99), a=st.floats(), b=st.floats())
def test_surer_queries_never_get_more_thinking(scores: list[float], mean: float, a: float, b: float) -> None:
    """λ is in [0, 1] and falls as confidence rises, also far outside the calibration's range."""
    if a != a or b != b:
        return
    fitted = QuantileMap.fit(scores, mean)
    low, high = fitted(min(a, b)), fitted(max(a, b))
    assert 0.0 <= high <= low <= 1.0


@pytest.mark.parametrize(
    ("scores", "mean", "largest"),
    [([], 0.5, 1), ([float("nan")], 0.5, 1), ([0.5], 0.0, 1), ([0.5], 1.0, 1), ([0.5], 0.5, 0.5), ([0.5], 0.5, 1.1)],
)
def test_calibration_without_meaning_is_refused(scores: list[float], mean: float, largest: float) -> None:
    """No scores, NaN, and a mean λ that no λ up to the largest can give are refused."""
    with pytest.raises(MisuseError, match="calibration expects"):
        QuantileMap.fit(scores, mean, largest)


@given(lambda_=UNIT, lambdas=st.lists(UNIT, min_size=1, max_size=9))
def test_nearest_is_nearest(lambda_: float, lambdas: list[float]) -> None:
    """No other variant is nearer than the chosen one."""
    chosen = nearest(lambda_, lambdas)
    assert chosen in lambdas
    assert all(abs(chosen - lambda_) <= abs(other - lambda_) for other in lambdas)


def test_a_router_without_variants_says_so() -> None:
    """Choosing among nothing is refused."""
    with pytest.raises(MisuseError, match="no variant"):
        nearest(0.5, [])


def test_dami_router_never_imports_torch() -> None:
    """Importing every module of dami-router leaves torch, transformers and mergekit alone."""
    code = (
        "import pkgutil, importlib, sys, dami_router\n"
        "for m in pkgutil.walk_packages(dami_router.__path__, 'dami_router.'): importlib.import_module(m.name)\n"
        "heavy = {'torch', 'transformers', 'mergekit', 'dami_merge'} & set(sys.modules) - {'dami_merge'}\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
