"""The best static λ and the best cap, chosen on other queries than those they are compared on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dami_router.cli import main
from dami_router.evaluating.comparison import Contender, compare
from dami_router.evaluating.frontier_file import frontier_of
from dami_router.evaluating.plots import draw_frontier
from dami_router.evaluating.rivals import capped_points, cross_fold, over_best_cap, over_best_static
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.grid import Figure, Grid, Point
from dami_router.rollouts.records import Rollout, write_rollouts
from dami_router.shared.suggestions import amount


def rollouts(count: int, seed: int = 0) -> list[Rollout]:
    """Thinking is right at 40 tokens, Instruct at 4 where the query is easy, and a cap costs accuracy for tokens."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        id, text, hard = f"q{i}", f"query {i} {'hard' if i % 2 else 'easy'}", bool(i % 2)
        rows += [Rollout(id, text, 0.0, float(not hard), 4), Rollout(id, text, 1.0, float(rng.random() < 0.9), 40)]
        rows += [
            Rollout(id, text, 1.0, float(rng.random() < right), cap + 4.0, cap=cap)
            for cap, right in ((8, 0.6), (16, 0.8))
        ]
    return rows


def columns(grid: Grid, column: int) -> tuple[Any, Any]:
    return grid.correct[:, column], grid.tokens[:, column]


def test_a_static_choice_is_level_with_itself() -> None:
    """The best λ on other queries is the best one here too, where one is much better: the gain is nothing."""
    grid = grid_of(rollouts(200))
    found = over_best_static(grid, *columns(grid, 1), cross_fold(grid))
    assert found is not None
    assert (found.gain.mean, found.token_share, found.chosen) == (0.0, 1.0, ("λ=1",))


def test_the_rival_is_not_chosen_on_the_queries_it_is_compared_on() -> None:
    """Where accuracy is a coin toss, hindsight finds a λ above the mean; choosing on other queries does not."""
    names = tuple(f"q{i}" for i in range(200))
    gains, hindsight = [], []
    for seed in range(30):
        tossed = np.random.default_rng(seed).integers(0, 2, (200, 12)).astype(float)
        grid = Grid(names, tuple(i / 11 for i in range(12)), tossed, np.ones_like(tossed), tossed, names)
        found = over_best_static(grid, np.full(200, 0.5), np.ones(200), cross_fold(grid))
        assert found is not None
        gains.append(found.gain.mean)
        hindsight.append(0.5 - float(tossed.mean(axis=0).max()))
    assert np.mean(hindsight) < -0.04
    assert abs(np.mean(gains)) < 0.015


def test_equally_accurate_variants_are_compared_by_cost() -> None:
    """Of two equally accurate λ, the cheaper one is the rival."""
    rows = [Rollout(f"q{i}", f"t{i}", x, 1.0, 10 + 10 * x) for i in range(20) for x in (0.0, 0.5, 1.0)]
    grid = grid_of(rows)
    found = over_best_static(grid, np.ones(20), np.full(20, 5.0), cross_fold(grid))
    assert found is not None
    assert (found.chosen, found.token_share) == (("λ=0",), 0.5)


def test_caps_are_compared_at_equal_tokens() -> None:
    """Between two caps, their mixture is the rival: it spends what the choice spends, on average."""
    grid = grid_of(rollouts(400))
    correct, spent = np.where(np.arange(400) % 2, 0.9, 1.0), np.where(np.arange(400) % 2, 28.0, 4.0)
    found = over_best_cap(grid, correct, spent, cross_fold(grid))
    assert found is not None
    assert found.tokens == pytest.approx(16.0, rel=0.02)
    assert set(found.chosen) <= {"λ=1, cap 8", "λ=1, cap 16", "λ=1"}
    assert found.gain.mean == pytest.approx(0.95 - 0.7, abs=0.06)
    assert found.gain.low > 0.15


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 50), st.floats(1.0, 60.0))
def test_a_cap_rival_never_spends_less_than_it_could(seed: int, target: float) -> None:
    """At any cost: never more than the choice, but where even the cheapest cap costs more."""
    grid = grid_of(rollouts(40, seed))
    found = over_best_cap(grid, np.ones(40), np.full(40, target), cross_fold(grid))
    assert found is not None
    assert found.tokens <= max(target, 12.0) + 1e-6
    assert found.tokens >= min(target, 12.0) - 1e-6


def test_without_caps_or_queries_there_is_no_rival() -> None:
    """No caps were run, or there is one query: nothing is claimed."""
    grid = grid_of([row for row in rollouts(20) if row.cap is None])
    assert over_best_cap(grid, np.ones(20), np.ones(20), cross_fold(grid)) is None
    assert capped_points(grid) == ()
    one = grid.rows([0])
    assert cross_fold(one) == ()
    assert over_best_static(one, np.ones(1), np.ones(1), ()) is None


def test_eval_begins_with_the_rivals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has the caps; below it stand the gains over both rivals, in the JSON and the report too."""
    write_rollouts(rollouts(120), tmp_path / "r.jsonl")
    arguments = ["eval", str(tmp_path / "r.jsonl"), "--report", str(tmp_path / "report"), "--folds", "3"]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert not stopped.value.code
    said = capsys.readouterr().out
    assert "λ=1, cap 8" in said
    (line,) = (line for line in said.splitlines() if line.startswith("preference: "))
    assert "% correct at " in line
    assert "The best static λ, chosen on other queries (λ=1): " in line
    assert "The best cap on thinking tokens, chosen on other queries" in line
    assert line.split(" Difference")[0] in (tmp_path / "report" / "report.html").read_text()
    with pytest.raises(SystemExit):
        main([*arguments[:2], "--json", "--folds", "3"])
    found = json.loads(capsys.readouterr().out)
    assert [(x["lambda"], x["cap"]) for x in found["capped"]] == [(1.0, 8), (1.0, 16)]
    assert found["over_best_static_lambda"]["gain"]["low"] <= found["over_best_static_lambda"]["gain"]["mean"]
    assert found["headlines"][0] == line
    assert f"{found['over_best_static_lambda']['accuracy']:.1%} at" in line


def test_the_headline_names_a_static_variant_that_beats_the_estimator() -> None:
    """A gain over a rival chosen fold by fold does not hide that a λ of the table is above the estimator."""
    grid = grid_of([row for row in rollouts(60) if row.cap is None])
    found = compare(grid, [Contender("poor", (0.0,) * 60, np.zeros(60)), Contender("fair", (1.0,) * 60, np.zeros(60))])
    poor, fair = found.headlines
    static = found.static[1].accuracy.mean
    assert poor.endswith(f"λ=1 for every query is more accurate: {static:.1%} correct at 40.0 tokens.")
    assert "for every query is" not in fair
    assert [x["static_above"] for x in found.as_dict()["estimators"]] == [[1.0], []]
    costly = compare(grid, [Contender("costly", (1.0,) * 60, np.zeros(60), cost=np.full(60, 5.0))])
    assert "λ=1 for every query is better: " in costly.headlines[0]


def test_a_difference_of_nothing_has_no_minus() -> None:
    """A bound that rounds to zero is `+0.0`, on either side."""
    assert Figure(0.025, -0.0004, 0.13).in_points() == "+2.5 [+0.0, +13.0]"
    assert Figure(-0.0, -0.012, 0.0).in_points() == "+0.0 [-1.2, +0.0]"


def test_caps_are_a_curve_in_the_picture() -> None:
    """The frontier shows capped thinking as one line with its own entry in the legend."""
    grid = grid_of(rollouts(40))
    static = [grid.static(x) for x in grid.lambdas]
    figure = draw_frontier(grid.lambdas, static, {}, title="x", capped=[p for _, p in capped_points(grid)])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["capped thinking"]
    lines = [line for line in figure.axes[0].get_lines() if line.get_marker() == "s"]
    assert [list(line.get_xdata()) for line in lines] == [[12.0, 20.0]]


@pytest.mark.parametrize(
    ("count", "words", "said"),
    [
        (1, ("answer",), "1 answer"),
        (0, ("answer",), "0 answers"),
        (73_399_899, ("token",), "73,399,899 tokens"),
        (1, ("query", "queries"), "1 query"),
        (1_200, ("query", "queries"), "1,200 queries"),
    ],
)
def test_counts_agree_with_their_nouns(count: int, words: tuple[str, ...], said: str) -> None:
    """One is singular, and thousands are separated."""
    assert amount(count, *words) == said


def test_a_dominated_cap_is_marked_in_the_file_of_points() -> None:
    """A cap that a variant, or another cap, equals at fewer tokens is dominated; no cap dominates a variant."""
    points = [Point(Figure(a, a, a), Figure(t, t, t), 0.0, 1.0) for a, t in ((0.6, 10.0), (0.8, 90.0))]
    caps = {"weak": (0.2, 20.0), "good": (0.9, 30.0), "costly": (0.9, 40.0)}
    capped = {name: Point(Figure(a, a, a), Figure(t, t, t), 0.0, 1.0) for name, (a, t) in caps.items()}
    found = frontier_of("x", 9, (0.0, 1.0), points, {}, capped)
    assert [p.dominated for p in found.points] == [False, False, True, False, True]
