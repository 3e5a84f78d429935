"""APGR, CPT, random mixing, CostSave and the distance to the frontier, against their definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dami_router.evaluating.plots import draw_sweep, render
from dami_router.evaluating.scores import (
    apgr,
    apgr_in_folds,
    cost_curve,
    cpt,
    frontier,
    mixing_at,
    over_mixing,
    pareto_distance,
    ranks,
    saving_at,
)
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.grid import Figure, Grid, Point, dominated, figure
from dami_router.rollouts.records import Rollout, read_rollouts

DATA = Path(__file__).parents[4] / "shared" / "data"
SEEDS = st.integers(0, 2**32 - 1)


def grid(*cells: tuple[tuple[float, int], ...]) -> Grid:
    """One row a query of (correct, tokens), one column a λ, evenly spaced."""
    n = len(cells[0]) - 1
    made = grid_of(
        Rollout(f"{q:04d}", f"text {q}", i / n, correct, tokens)
        for q, row in enumerate(cells)
        for i, (correct, tokens) in enumerate(row)
    )
    return made.rows(np.argsort(made.queries))


def random_grid(seed: int, variants: int = 3) -> Grid:
    rng = np.random.default_rng(seed)
    return grid(
        *(
            tuple((float(rng.integers(0, 2)), int(rng.integers(0, 50))) for _ in range(variants))
            for _ in range(rng.integers(1, 12))
        )
    )


def test_apgr_of_a_worked_example() -> None:
    """Four queries, two that need the strong variant, ranked first: ½, 1, 1, 1 recovered after 1 to 4 calls."""
    weak, strong = np.array([0.0, 0, 1, 1]), np.array([1.0, 1, 1, 1])
    score = np.array([0.9, 0.8, 0.2, 0.1])
    assert apgr(score, weak, strong) == pytest.approx((0 / 2 + 0.5 + 1 + 1 + 1 / 2) / 4)
    assert apgr(-score, weak, strong) == pytest.approx((0 + 0 + 0 + 0.5 + 1 / 2) / 4)
    assert (cpt(score, weak, strong, 0.5), cpt(score, weak, strong, 1.0)) == (0.25, 0.5)


@given(seed=SEEDS)
def test_a_score_that_says_nothing_has_half(seed: int) -> None:
    """Equal scores are a random order: APGR is exactly ½, and CPT(x) is the first share of at least x."""
    rng = np.random.default_rng(seed)
    weak, strong = rng.integers(0, 2, 30) * 1.0, rng.integers(0, 2, 30) * 1.0
    found = apgr(np.zeros(30), weak, strong)
    if strong.sum() <= weak.sum():
        assert found is None
        assert cpt(np.zeros(30), weak, strong, 0.5) is None
    else:
        assert found == pytest.approx(0.5)
        assert cpt(np.zeros(30), weak, strong, 0.5) == pytest.approx(0.5)


def test_apgr_is_unknown_where_strong_is_no_better() -> None:
    """One class only, or a strong variant that loses, has no gap to recover."""
    assert apgr(np.arange(3.0), np.ones(3), np.ones(3)) is None
    assert apgr(np.arange(3.0), np.ones(3), np.zeros(3)) is None


@given(seed=SEEDS)
@settings(max_examples=60)
def test_the_frontier_is_what_mixtures_reach(seed: int) -> None:
    """No variant, and no mixture of two, is above the frontier; every corner is a variant."""
    made = random_grid(seed)
    rng = np.random.default_rng(seed)
    tokens, accuracy = made.tokens.mean(axis=0), made.correct.mean(axis=0)
    x, y = frontier(made)
    assert (np.diff(x) > 0).all()
    assert (np.diff(y) > 0).all()
    assert all(any(a == b and c == d for b, d in zip(tokens, accuracy, strict=True)) for a, c in zip(x, y, strict=True))
    for i in range(len(tokens)):
        for j in range(len(tokens)):
            t = rng.random()
            reached = mixing_at(made, t * tokens[i] + (1 - t) * tokens[j])
            assert reached is not None
            assert t * accuracy[i] + (1 - t) * accuracy[j] <= reached + 1e-9


@given(seed=SEEDS, accuracy=st.floats(0, 1), tokens=st.floats(0, 80))
@settings(max_examples=60)
def test_the_distance_to_the_frontier_has_the_right_sign(seed: int, accuracy: float, tokens: float) -> None:
    """On the frontier it is 0, above it positive, below it negative, and never longer than straight up or down."""
    made = random_grid(seed)
    x, y = frontier(made)
    assert pareto_distance(made, float(y[0]), float(x[0])) == pytest.approx(0.0, abs=1e-9)
    at, found = mixing_at(made, tokens), pareto_distance(made, accuracy, tokens)
    if at is not None:
        assert abs(found) <= abs(accuracy - at) + 1e-9
        assert found * (accuracy - at) >= -1e-12
    else:
        assert found >= 0


def test_costs_of_a_worked_example() -> None:
    """The expensive variant goes to the highest rank first; what choosing costs is added; CostSave is read off it."""
    made = grid(((0, 2), (1, 10)), ((1, 2), (1, 10)))
    curve = cost_curve(made, ranks(np.array([1.0, 0.0])), np.zeros(2), steps=3)
    assert curve == [(2.0, 0.5), (6.0, 1.0), (10.0, 1.0)]
    assert cost_curve(made, ranks(np.array([0.0, 1.0])), np.full(2, 1.0), steps=3) == [
        (3.0, 0.5), (7.0, 0.5), (11.0, 1.0),
    ]  # fmt: skip
    assert saving_at(curve, 1.0, 10.0) == pytest.approx(0.4)
    assert saving_at(curve, 1.1, 10.0) is None
    assert saving_at(curve, 1.0, 0.0) is None


@given(seed=SEEDS)
@settings(max_examples=40)
def test_equal_ranks_are_random_mixing(seed: int) -> None:
    """An order that says nothing has, at each cost, what the best random mixture has."""
    made = random_grid(seed)
    for tokens, accuracy in cost_curve(made, ranks(np.zeros(len(made.queries))), np.zeros(len(made.queries))):
        assert accuracy == pytest.approx(mixing_at(made, tokens))


@given(seed=SEEDS)
def test_ranks_do_not_depend_on_a_folds_scale(seed: int) -> None:
    """Scores of one fold stretched and shifted keep all ranks, and with them CPT and the order of the cost curve."""
    rng = np.random.default_rng(seed)
    score, folds = rng.integers(0, 9, 40) * 1.0, tuple(np.array_split(rng.permutation(40), 3))
    moved = score.copy()
    moved[folds[1]] = 1000 + 7 * moved[folds[1]]
    assert np.array_equal(ranks(score, folds), ranks(moved, folds))
    assert ranks(score, folds)[folds[0]] == pytest.approx(ranks(score[folds[0]]))
    assert 0 < ranks(score, folds).min() <= ranks(score, folds).max() < 1


def test_apgr_has_an_interval_over_queries_in_folds() -> None:
    """The mean over folds is APGR's; the interval holds it, narrows with n, and folds without a gap are counted."""
    rng = np.random.default_rng(0)
    widths = []
    for n in (60, 1500):
        weak, strong = rng.integers(0, 2, n) * 1.0, np.ones(n)
        weak[: n // 3] = 1.0  # the first fold has no gap
        score, folds = rng.normal(size=n) - weak, tuple(np.array_split(np.arange(n), 3))
        found, without = apgr_in_folds(score, weak, strong, folds)
        assert found is not None
        assert without == 1
        assert found.mean == pytest.approx(np.mean([apgr(score[p], weak[p], strong[p]) for p in folds[1:]]))
        assert found.low < found.mean < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 3
    assert apgr_in_folds(np.zeros(4), np.ones(4), np.ones(4), (np.arange(2), np.arange(2, 4))) == (None, 2)


def test_a_resampled_apgr_is_apgr_of_the_resample() -> None:
    """A constant score has ½ in every resample, a perfect one a fixed curve: the interval has no width."""
    weak, strong = np.array([0.0, 0, 0, 0]), np.ones(4)
    found, _ = apgr_in_folds(np.zeros(4), weak, strong, (np.arange(4),))
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_a_static_variant_is_its_own_mixture() -> None:
    """On the frontier the difference is 0 with an interval below or at 0, since each resample has a new frontier."""
    made = grid(*[((0, 2), (1, 10))] * 6, *[((1, 2), (1, 10))] * 4)
    found = over_mixing(made, made.correct[:, 0], made.tokens[:, 0])
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)


def test_over_mixing_of_a_worked_example() -> None:
    """Half the queries need the expensive variant: choosing right has 1.0 where a coin has 0.75, at equal tokens."""
    made = grid(*[((0, 2), (1, 10)), ((1, 2), (1, 10))] * 50)
    correct, tokens = np.ones(100), np.where(np.arange(100) % 2, 2.0, 10.0)
    found = over_mixing(made, correct, tokens)
    assert found is not None
    assert found.mean == pytest.approx(0.25)
    # With w the resampled share of hard queries, the difference is w(1 − w): close to ¼, and never above.
    assert 0.23 < found.low <= found.high <= 0.25 + 1e-9
    # Paid with 2 more tokens a query, a mixture may spend them too: it has 0.5 + 0.5 · 6/8.
    dearer = over_mixing(made, correct, tokens + 2)
    assert dearer is not None
    assert dearer.mean == pytest.approx(0.125)


@given(seed=SEEDS)
@settings(max_examples=20)
def test_over_mixing_is_the_distance_straight_up(seed: int) -> None:
    """Its mean is the accuracy minus `mixing_at`; below the cheapest variant there is none."""
    made = random_grid(seed)
    rng = np.random.default_rng(seed)
    correct, tokens = rng.random(len(made.queries)), rng.integers(0, 50, len(made.queries)) * 1.0
    found, mixing = over_mixing(made, correct, tokens), mixing_at(made, float(tokens.mean()))
    if mixing is None:
        assert found is None
    else:
        assert found is not None
        assert found.mean == pytest.approx(float(correct.mean()) - mixing)
        assert found.low <= found.high


def test_intervals_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cutting the resamples into blocks, as for many queries, changes no bit."""
    values = np.random.default_rng(1).random(777)
    whole = figure(values)
    monkeypatch.setattr("dami_router.rollouts.grid._BLOCK", 777 * 3)
    assert figure(values) == whole


def test_length_alone_on_two_real_models() -> None:
    """Ranking GSM8K's questions by length has APGR 0.60 on the rollouts of two real models."""
    path = DATA / "gsm8k_two_model_rollouts.jsonl.gz"
    if not path.exists():
        pytest.skip(f"optional data: {path} is not here")
    made = grid_of(read_rollouts(path))
    assert apgr(np.array([float(len(t)) for t in made.texts]), *made.correct.T) == pytest.approx(0.60, abs=0.005)


def test_dominated_variants_of_a_published_sweep() -> None:
    """Of arXiv 2510.10977's sweep on AIME25, the variants beaten in accuracy and cost are found, and drawn hollow."""
    path = DATA / "model_interpolation_2510_10977_sweep.csv"
    if not path.exists():
        pytest.skip(f"optional data: {path} is not here")
    rows = [line.split(",") for line in path.read_text().splitlines() if line.startswith("Qwen3-4B") and "AIME" in line]
    sweep = sorted((float(r[1]), float(r[3]) / 100, float(r[6])) for r in rows)
    points = [Point(Figure(a, a, a), Figure(t, t, t), 0.0, x) for x, a, t in sweep]
    gone = {x for (x, _, _), beaten in zip(sweep, dominated(points), strict=True) if beaten}
    assert {0.0, 0.2, 0.4} <= gone
    assert not {0.5, 0.6, 0.8} & gone
    drawn = draw_sweep(*zip(*sweep, strict=True), title="AIME25")  # type: ignore[arg-type]
    hollow = [
        line for line in drawn.axes[0].lines if line.get_marker() == "o" and line.get_markerfacecolor() == "white"
    ]
    assert len(hollow) == len(gone)
    assert render(drawn, "png").startswith(b"\x89PNG")
