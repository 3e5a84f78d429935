"""From expected gains and costs to variants: within a budget, spent, monotone, and the best that is expected."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dami_router.errors import MisuseError
from dami_router.estimators.decision import best_price, choose, price_within, prices_of_switches, tie_breaks
from dami_router.estimators.training import TrainingSettings, train
from dami_router.evaluating.comparison import compare, cross_validated
from dami_router.rollouts.folds import fingerprint
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.grid import Grid
from dami_router.rollouts.records import Rollout

Floats = NDArray[np.float64]
SEEDS = st.integers(0, 2**32 - 1)
BUDGETS = tuple(i / 10 for i in range(1, 11))
VARIANTS = (2, 3, 11)


def ties(count: int) -> Floats:
    return tie_breaks([fingerprint(f"query {i}") for i in range(count)])


def estimates(seed: int, count: int, variants: int) -> tuple[Floats, Floats, Floats]:
    """Random gains, costs that rise from variant to variant, and tokens that are about those costs."""
    rng = np.random.default_rng(seed)
    gain = rng.normal(size=(count, variants)).cumsum(axis=1) / 10
    cost = rng.random((count, variants)).cumsum(axis=1) / variants
    return gain, cost, cost * rng.uniform(0.5, 1.5, cost.shape)


@given(seed=SEEDS, variants=st.sampled_from(VARIANTS))
@settings(max_examples=60, deadline=None)
def test_a_budget_is_kept_spent_and_monotone(seed: int, variants: int) -> None:
    """Every budget is kept; a larger one never has a higher price; what is left over is less than one query's step."""
    gain, cost, _ = estimates(seed, 60, variants)
    rows, full, last = np.arange(60), cost.mean(axis=0).max(), np.inf
    for budget in BUDGETS:
        price = price_within(gain, cost, cost, budget * full, ties(60))
        if price is None:
            assert cost.min(axis=1).mean() > budget * full
            continue
        spent = cost[rows, choose(gain, cost, price, ties(60))]
        assert spent.mean() <= budget * full
        assert price <= last
        last = price
        free = cost[rows, choose(gain, cost, 0.0, ties(60))]
        assert budget * full - spent.mean() < np.ptp(cost, axis=1).max() / 60 or spent == pytest.approx(free)


@given(seed=SEEDS, variants=st.sampled_from(VARIANTS))
@settings(max_examples=60, deadline=None)
def test_actual_tokens_decide_whether_a_budget_is_kept(seed: int, variants: int) -> None:
    """Where answers cost other than expected, the actual tokens stay within the budget, and prices are monotone."""
    gain, cost, tokens = estimates(seed, 60, variants)
    found = [price_within(gain, cost, tokens, b * tokens.mean(axis=0).max(), ties(60)) for b in BUDGETS]
    for budget, price in zip(BUDGETS, found, strict=True):
        if price is not None:
            spent = tokens[np.arange(60), choose(gain, cost, price, ties(60))].mean()
            assert spent <= budget * tokens.mean(axis=0).max()
    known = [price for price in found if price is not None]
    assert known == sorted(known, reverse=True)


@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_no_choice_of_equal_cost_expects_more(seed: int) -> None:
    """Among all 243 choices for five queries of three variants, none within what is spent expects a larger gain."""
    gain, cost, _ = estimates(seed, 5, 3)
    rows = np.arange(5)
    for budget in BUDGETS:
        price = price_within(gain, cost, cost, budget * cost.mean(axis=0).max(), ties(5))
        if price is None:
            continue
        mine = choose(gain, cost, price, ties(5))
        others = [np.array(way) for way in product(range(3), repeat=5)]
        within = [way for way in others if cost[rows, way].sum() <= cost[rows, mine].sum() + 1e-12]
        assert max(gain[rows, way].sum() for way in within) <= gain[rows, mine].sum() + 1e-5


@pytest.mark.parametrize("count", [1, 7, 100])
def test_queries_that_are_alike_share_a_budget(count: int) -> None:
    """If nothing tells queries apart, each budget is still spent: as many of them think as it allows."""
    gain, cost = np.tile([0.0, 0.3], (count, 1)), np.tile([0.0, 1.0], (count, 1))
    for budget in BUDGETS:
        price = price_within(gain, cost, cost, budget, ties(count))
        assert price is not None
        assert choose(gain, cost, price, ties(count)).sum() == int(budget * count + 1e-9)


def test_of_equal_variants_the_cheaper_is_chosen() -> None:
    """At price 0 too, a variant that gains nothing is not paid for."""
    gain, cost = np.array([[0.0, 0.2, 0.2]]), np.array([[0.0, 0.4, 0.3]])
    assert choose(gain, cost, 0.0, ties(1)) == [2]
    assert choose(gain, cost, 1.0, ties(1)) == [0]


def test_the_best_price_makes_up_for_wrong_scales() -> None:
    """Gains that are expected ten times too small get a price ten times lower; equally good prices give the middle."""
    rng = np.random.default_rng(0)
    hard = rng.random(200) < 0.5
    gain, cost = np.stack([np.zeros(200), np.where(hard, 0.08, 0.02)], axis=1), np.tile([0.0, 1.0], (200, 1))
    utility = np.stack([np.zeros(200), np.where(hard, 1.0, 0.0) - 0.5], axis=1)
    price = best_price(gain, cost, utility, ties(200))
    assert np.array_equal(choose(gain, cost, price, ties(200)), hard)
    assert np.array_equal(choose(10 * gain, cost, best_price(10 * gain, cost, utility, ties(200)), ties(200)), hard)


def test_prices_of_switches_reach_both_ends() -> None:
    """The first price leaves every query its cheapest variant, the last its most accurate; they fall between."""
    gain, cost, _ = estimates(0, 200, 5)
    prices = prices_of_switches(gain, cost, 41)
    assert len(prices) <= 41
    assert (np.diff(prices) < 0).all()
    assert np.array_equal(choose(gain, cost, prices[0], ties(200)), cost.argmin(axis=1))
    assert np.array_equal(choose(gain, cost, prices[-1], ties(200)), gain.argmax(axis=1))
    assert prices_of_switches(np.zeros((3, 2)), np.ones((3, 2)), 41).tolist() == [0.0]


def answers(count: int, variants: int, *, seed: int = 0) -> Grid:
    """Queries with a word of difficulty 0 to 4; more thinking helps the harder ones, with noise, and costs tokens."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        level = int(rng.integers(0, 5))
        text = f"level{level} {' '.join(f'w{rng.integers(0, 50)}' for _ in range(6))} {i}"
        for k in range(variants):
            x = k / (variants - 1)
            chance = 0.9 - 0.15 * level * (1 - x)
            made.append(Rollout(f"q{i}", text, x, float(rng.random() < chance), int(100 + 200 * x)))
    return grid_of(made)


@pytest.mark.parametrize("variants", VARIANTS)
def test_a_larger_budget_is_never_worse_on_unseen_queries(variants: int) -> None:
    """Over budgets 0.1 … 1.0, tokens of held-out queries stay near the budget and rise, and accuracy with them."""
    grid = answers(400, variants)
    points = []
    for budget in BUDGETS[3:]:
        found = compare(grid, [cross_validated(grid, TrainingSettings(budget=budget, knots=4), 2)]).points[0]
        assert found.tokens.mean <= 1.2 * budget * 300  # by folding, the worst of these budgets is at 1.00 to 1.15
        points.append((found.tokens.mean, found.accuracy.mean))
    tokens, accuracy = np.array(points).T
    assert (np.diff(tokens) >= -1e-9).all()
    assert (np.diff(accuracy) > -0.02).all()
    assert tokens[-1] > 0.9 * 300
    assert accuracy[-1] > accuracy[0] + 0.1


def test_two_variants_are_decided_as_by_a_threshold() -> None:
    """With two variants, a budget is a threshold on the expected gain: the best share of the order, and all of it."""
    grid = answers(600, 2)
    half = grid.rows(np.arange(0, 600, 2)), grid.rows(np.arange(1, 600, 2))
    for budget in BUDGETS[3:]:
        made = train(half[0], TrainingSettings(budget=budget, knots=4))
        values = made.of_texts(half[1].texts)
        columns = made.choices(values, half[1].texts)
        gain = values.gain[:, 1] - values.gain[:, 0]
        thinks = gain[columns == 1]
        assert not len(thinks) or thinks.min() >= gain[columns == 0].max(initial=-np.inf) - 1e-6
        allowed = (300 * budget - 100) / 200
        assert (columns == 1).mean() == pytest.approx(allowed, abs=0.1) or (gain[columns == 0] <= 1e-6).all()


def test_a_budget_below_the_cheapest_variant_is_refused() -> None:
    """The message says what the budget allows and what the cheapest variant needs."""
    with pytest.raises(MisuseError, match=r"stays within 30\.0 tokens: 10%") as caught:
        train(answers(60, 2), TrainingSettings(budget=0.1, knots=4))
    assert caught.value.hint == "the cheapest variant needs 100.0"
