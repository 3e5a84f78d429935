"""Ridge regression on sparse rows, the vocabulary, and the preference model, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dami_router.estimators.linear import Design, ridge_path
from dami_router.estimators.preference import centred, fit_preference
from dami_router.estimators.sparse import SparseRows
from dami_router.estimators.word_weights import WordWeights

Floats = NDArray[np.float64]
SEEDS = st.integers(0, 2**32 - 1)


def sparse(rng: np.random.Generator, count: int, width: int) -> SparseRows:
    """Random rows, some of them empty."""
    rows = [{int(i): float(rng.normal()) for i in rng.integers(0, width, rng.integers(0, 5))} for _ in range(count)]
    return SparseRows.of(rows, width)


@given(seed=SEEDS)
@settings(deadline=None)
def test_sparse_rows_are_a_matrix(seed: int) -> None:
    """Both products, picked rows and columns, and unit rows equal those of the dense matrix."""
    rng = np.random.default_rng(seed)
    made = sparse(rng, 7, 9)
    dense = made.dense()
    assert made.times(x := rng.normal(size=9)) == pytest.approx(dense @ x)
    assert made.transposed_times(y := rng.normal(size=7)) == pytest.approx(y @ dense)
    rows, columns = np.flatnonzero(rng.random(7) < 0.5), np.flatnonzero(rng.random(9) < 0.5)
    assert np.array_equal(made.rows(rows).dense(), dense[rows])
    assert np.array_equal(made.columns(columns).dense(), dense[:, columns])
    length = np.linalg.norm(made.unit().dense(), axis=1)
    assert length == pytest.approx((np.abs(dense).sum(axis=1) > 0).astype(float))


@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_the_path_has_every_penaltys_ridge_regression(seed: int) -> None:
    """For each penalty, predictions and weights equal the closed form with an intercept that is not penalised."""
    rng = np.random.default_rng(seed)
    words = sparse(rng, 20, 6)
    design = Design(rng.normal(size=(20, 3)), words)
    rows, target = np.sort(rng.permutation(20)[:14]), rng.normal(size=14)
    path = ridge_path(design, rows, target, (0.5, 5.0, 50.0))
    x = np.concatenate([design.dense, words.dense()], axis=1)
    centre = x[rows].mean(axis=0)
    for i, penalty in enumerate((0.5, 5.0, 50.0)):
        inner = (x[rows] - centre).T @ (x[rows] - centre) + penalty * np.eye(9)
        w = np.linalg.solve(inner, (x[rows] - centre).T @ (target - target.mean()))
        assert path.predictions[i] == pytest.approx((x - centre) @ w + target.mean(), abs=1e-7)
        found = path.weights(i)
        assert np.concatenate([found.dense, found.sparse]) == pytest.approx(w, abs=1e-7)
        assert design.times(found.dense, found.sparse) + found.intercept == pytest.approx(path.predictions[i])


@pytest.mark.parametrize("target", [np.zeros(5), np.full(5, 3.0)])
def test_a_constant_target_is_its_own_prediction(target: Floats) -> None:
    """Nothing to learn gives weights of 0 and the constant for every query."""
    design = Design(np.random.default_rng(0).normal(size=(8, 2)), SparseRows.of([{}] * 8, 0))
    path = ridge_path(design, np.arange(5), target, (1.0,))
    assert path.predictions == pytest.approx(np.full((1, 8), target[0]))
    found = path.weights(0)
    assert found.dense == pytest.approx(np.zeros(2))
    assert found.intercept == pytest.approx(target[0])


def test_rare_words_weigh_more_and_lonely_ones_nothing() -> None:
    """A bucket of one training query is dropped; of the others, the rarer has the larger entry; rows have length 1."""
    counts = SparseRows.of([{0: 1, 1: 1, 5: 1}, {0: 1, 1: 1}, {0: 1}, {0: 2}], 8)
    made = WordWeights.fit(counts)
    assert made.buckets.tolist() == [0, 1]
    rows = made.vectors(counts).dense()
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(4))
    assert rows[0, 1] > rows[0, 0] > 0
    assert not made.vectors(SparseRows.of([{5: 3}, {7: 1}], 8)).dense().any()


@given(seed=SEEDS)
@settings(max_examples=40)
def test_centred_values_hold_all_differences_between_pairs(seed: int) -> None:
    """Their squared errors sum to those of all pairs, over the number of variants: least-squares Bradley–Terry."""
    rng = np.random.default_rng(seed)
    correct, tokens = rng.integers(0, 2, (6, 4)) * 1.0, rng.integers(0, 99, (6, 4)) * 1.0
    values, guess = centred(correct, tokens, 50.0), centred(rng.random((6, 4)), rng.random((6, 4)), 1.0)
    assert values[:, 1] - values[:, 3] == pytest.approx(correct[:, 1] - correct[:, 3])
    assert values[:, 5] - values[:, 7] == pytest.approx((tokens[:, 1] - tokens[:, 3]) / 50.0)
    i, j = np.triu_indices(4, 1)
    apart = (values[:, i] - values[:, j]) - (guess[:, i] - guess[:, j])
    assert (apart**2).sum() / 4 == pytest.approx(((values - guess)[:, :4] ** 2).sum())


def test_what_cannot_be_predicted_is_left_at_its_mean() -> None:
    """Noise has no component: every query is expected to gain and cost the same, and explains nothing."""
    rng = np.random.default_rng(1)
    design = Design(rng.normal(size=(200, 3)), SparseRows.of([{}] * 200, 0))
    targets = centred(rng.integers(0, 2, (200, 2)) * 1.0, np.tile([1.0, 3.0], (200, 1)), 3.0)
    fit = fit_preference(design, targets, np.array_split(np.arange(200), 5))
    values = fit.model.values(design)
    assert np.ptp(values.cost[:, 1] - values.cost[:, 0]) == pytest.approx(0.0, abs=1e-9)
    assert fit.explained < 0.05
    assert (values.cost[0, 1] - values.cost[0, 0]) == pytest.approx(2 / 3)
