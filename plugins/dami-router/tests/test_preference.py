"""The trained estimator: its loss, its optimiser, its cuts, training, saving, and what it refuses."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dami_router.errors import DamiError, FailureError, MisuseError
from dami_router.estimators.basis import Basis
from dami_router.estimators.bradley_terry import ideal, loss, preferences
from dami_router.estimators.cuts import Cuts
from dami_router.estimators.descent import minimise
from dami_router.estimators.estimator import Estimator
from dami_router.estimators.features import STATISTICS, HashedText, statistics
from dami_router.estimators.log_probs import EstimationError
from dami_router.estimators.preference import Preference
from dami_router.estimators.query import Estimate, Query
from dami_router.estimators.store import load, save
from dami_router.estimators.training import TrainingSettings, train
from dami_router.rollouts.folds import folds_of
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.records import Rollout

LAMBDAS = (0.0, 0.5, 1.0)
SEEDS = st.integers(0, 2**32 - 1)


def rollouts(count: int, *, seed: int = 0, confidence: bool = False) -> list[Rollout]:
    """Questions with `hard` in them need λ=1, the others are right everywhere; thinking costs tokens."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        hard = bool(rng.random() < 0.5)
        text = f"{'hard' if hard else 'easy'} question about {'things ' * int(rng.integers(1, 9))} number {seed} {i}"
        sure = float(np.clip(rng.normal(0.2 if hard else 0.8, 0.1), 0, 1)) if confidence else None
        for x in LAMBDAS:
            right = x == 1.0 if hard else True
            made.append(Rollout(f"q{i}", text, x, float(right), int(10 + 100 * x), confidence=sure))
    return made


@pytest.fixture(scope="module")
def trained() -> Preference:
    """One estimator, trained on 200 questions."""
    return train(grid_of(rollouts(200)), TrainingSettings(knots=4))


def test_it_learns_which_queries_need_thinking(trained: Preference) -> None:
    """On 19 of 20 new questions or more, λ is 1 where only thinking helps, and 0 where it only costs."""
    held = grid_of(rollouts(100, seed=1))
    found = zip(held.texts, trained.lambdas(held.texts), strict=True)
    assert sum(x == (1.0 if text.startswith("hard") else 0.0) for text, x in found) >= 95


def test_it_is_an_estimator(trained: Preference) -> None:
    """It answers as the router asks, with its evidence, and the same λ as for many at once."""
    assert isinstance(trained, Estimator)
    found = asyncio.run(trained.estimate(Query("hard question")))
    assert (found.lambda_, found.estimator) == (trained.lambdas(["hard question"])[0], "preference")
    assert np.isfinite(float(found.evidence["mu"]))


def test_training_is_deterministic(trained: Preference) -> None:
    """The same rollouts give the same bits."""
    again = train(grid_of(rollouts(200)), TrainingSettings(knots=4))
    assert np.array_equal(again.parameters, trained.parameters)
    assert again.cuts == trained.cuts


@given(seed=SEEDS, ridge=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_the_gradient_is_that_of_the_loss(seed: int, ridge: float) -> None:
    """The analytic gradient agrees with central differences, ties and weights included."""
    rng = np.random.default_rng(seed)
    x, correct = rng.normal(size=(6, 3)), rng.integers(0, 2, size=(6, 3)).astype(float)
    pairs = preferences(np.array(LAMBDAS), correct, rng.integers(0, 50, (6, 3)) * 1.0, price=0.2, margin=0.05)
    at = rng.normal(size=8) * 0.5
    _, gradient = loss(at, x, pairs, ridge)
    for i, step in enumerate(1e-5 * np.eye(8)):
        slope = (loss(at + step, x, pairs, ridge)[0] - loss(at - step, x, pairs, ridge)[0]) / 2e-5
        assert gradient[i] == pytest.approx(slope, abs=1e-5)


@given(seed=SEEDS)
@settings(max_examples=50, deadline=None)
def test_a_preference_is_for_the_more_accurate_then_the_cheaper(seed: int) -> None:
    """Accuracy decides whatever the tokens; between equals the cheaper is preferred, or nothing within the margin."""
    rng = np.random.default_rng(seed)
    correct, tokens = rng.integers(0, 2, (20, 3)) * 1.0, rng.integers(0, 10**6, (20, 3)) * 1.0
    pairs = preferences(np.array(LAMBDAS), correct, tokens, price=0.1, margin=1e-4)
    for column, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        better, cheaper = correct[:, i] - correct[:, j], tokens[:, j] - tokens[:, i]
        weight = pairs.weight[:, column]
        assert (weight * better >= 0).all()
        assert (weight[better == 0] * cheaper[better == 0] >= 0).all()


@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_the_optimiser_finds_the_minimum_of_a_bowl(seed: int) -> None:
    """On a strictly convex quadratic it ends where the gradient is 0."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(5, 5))
    a, b = a @ a.T + np.eye(5), rng.normal(size=5)
    found = minimise(lambda x: (float(0.5 * x @ a @ x - b @ x), a @ x - b), np.zeros(5), steps=200, tolerance=1e-14)
    assert found == pytest.approx(np.linalg.solve(a, b), abs=1e-4)


def rising_by_search(gains: NDArray[np.float64]) -> float:
    """The best total of a choice that never falls, by trying every one."""
    from itertools import combinations_with_replacement

    ways = combinations_with_replacement(range(gains.shape[1]), len(gains))
    return max(float(sum(gains[i, k] for i, k in enumerate(way))) for way in ways)


@given(seed=SEEDS, bins=st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_the_cuts_are_the_best_rising_ones(seed: int, bins: int) -> None:
    """No other rising assignment of variants to stretches of μ has a larger total utility."""
    rng = np.random.default_rng(seed)
    mu = np.linspace(0.1, 0.9, 20 * bins)
    worth = rng.normal(size=(len(mu), 3))
    cuts = Cuts.fit(mu, worth, np.array(LAMBDAS))
    total = sum(worth[i, LAMBDAS.index(cuts(x))] for i, x in enumerate(mu))
    assert total == pytest.approx(rising_by_search(worth.reshape(bins, 20, 3).sum(axis=1)))
    assert list(cuts.levels) == sorted(cuts.levels)


def test_equal_scores_get_one_variant() -> None:
    """A constant μ has no cuts: the best single variant for all."""
    cuts = Cuts.fit(np.full(100, 0.5), np.tile([0.0, 1.0, 0.5], (100, 1)), np.array(LAMBDAS))
    assert (cuts.edges, cuts.levels) == ((), (0.5,))


@given(text=st.text(max_size=300))
def test_any_text_has_finite_features(text: str) -> None:
    """Numbers are finite, vectors are of unit length or empty, and both depend on the text alone."""
    numbers = statistics(text)
    assert len(numbers) == len(STATISTICS)
    assert np.isfinite(numbers).all()
    encoder = HashedText(64)
    (row,) = encoder.encode([text])
    assert np.linalg.norm(row) == pytest.approx(1.0) or not row.any()
    assert np.array_equal(encoder.encode(["other", text])[1], row)


def test_surrogates_and_endless_texts_are_taken(trained: Preference) -> None:
    """Half a surrogate pair, a megabyte and an empty text each get a λ."""
    assert all(0 <= x <= 1 for x in trained.lambdas(["\ud800", "word " * 200_000, ""]))


def test_steps_are_centred_and_bounded() -> None:
    """On the training numbers every step has mean 0; far numbers are not extrapolated."""
    numbers = np.random.default_rng(0).normal(size=(100, 3))
    basis = Basis.fit(numbers, 5)
    expanded = basis.expand(numbers)
    assert expanded.shape == (100, basis.width)
    assert expanded.mean(axis=0) == pytest.approx(np.zeros(basis.width), abs=1e-9)
    assert np.abs(basis.expand(np.full((1, 3), 1e30))).max() <= 5.0


def test_kappa_is_bounded() -> None:
    """Extreme features give a finite κ, above 0."""
    mu, kappa = ideal(np.ones(4), np.array([[1e9], [-1e9]]))
    assert np.isfinite(kappa).all()
    assert (kappa > 0).all()
    assert np.isfinite(mu).all()


def test_confidence_is_a_feature_and_is_asked_for() -> None:
    """Trained with confidence, it asks another estimator for it, and has nothing to say without."""

    class Sure:
        name = "confidence"

        async def estimate(self, query: Query) -> Estimate:
            return Estimate(0.5, self.name, {"confidence": 0.2 if "hard" in query.text else 0.8})

    made = train(grid_of(rollouts(120, confidence=True)), TrainingSettings(knots=4))
    assert made.evidence == ("confidence",)
    query = Query("hard question about things things things number 0 500")
    with pytest.raises(EstimationError, match="which is not available here"):
        asyncio.run(made.estimate(query))
    found = asyncio.run(replace(made, asks=Sure()).estimate(query))
    assert (found.lambda_, found.evidence["confidence"]) == (1.0, 0.2)


def test_a_saved_estimator_says_the_same(trained: Preference, tmp_path: Path) -> None:
    """What is saved reads back with equal λ, and holds no pickle and no training text."""
    save(trained, tmp_path / "est")
    again = load(tmp_path / "est")
    texts = grid_of(rollouts(20, seed=2)).texts
    assert again.lambdas(texts) == trained.lambdas(texts)
    assert again.trained_on == trained.trained_on
    assert {f.name for f in (tmp_path / "est").iterdir()} == {"estimator.json", "weights.safetensors"}
    assert b"question about" not in b"".join(f.read_bytes() for f in (tmp_path / "est").iterdir())
    with pytest.raises(MisuseError, match="already exists"):
        save(trained, tmp_path / "est")
    assert [f.name for f in tmp_path.iterdir()] == ["est"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"extra": 1}, "extra"),
        ({"levels": [0.5, 1.5]}, "levels"),
        ({"edges": [0.9, 0.1], "levels": [0, 0.5, 1]}, "do not match"),
        ({"levels": [1.0, 0.5], "edges": [0.5]}, "do not match"),
        ({"statistics": ["characters"]}, "the features of another version"),
        ({"evidence": ["confidence"]}, "do not match"),
        ({"encoder": {"kind": "hashed", "dimensions": 7}}, "do not match"),
        ({"encoder": {"kind": "pickle", "dimensions": 7}}, "encoder"),
        ({"trained_on": ["../../x"]}, "trained_on"),
    ],
)
def test_a_foreign_description_is_refused(
    trained: Preference, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    """Unknown fields, ranges, orders and sizes that do not fit are each one message."""
    save(trained, tmp_path / "est")
    file = tmp_path / "est" / "estimator.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(FailureError, match=message):
        load(tmp_path / "est")


@cache
def tiny() -> Preference:
    """The smallest estimator that is worth saving."""
    return train(grid_of(rollouts(20)), TrainingSettings(knots=1, folds=2), encoder=HashedText(4))


@given(position=st.floats(0, 1), byte=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_damaged_weights_are_refused_or_still_sound(
    tmp_path_factory: pytest.TempPathFactory, position: float, byte: int
) -> None:
    """One byte changed anywhere in the weights is refused in one message, or leaves λ in [0, 1]."""
    folder = tmp_path_factory.mktemp("damaged") / "est"
    save(tiny(), folder)
    file = folder / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[int(position * (len(data) - 1))] = byte
    file.write_bytes(data)
    try:
        found = load(folder).lambdas(["hard question", ""])
    except DamiError:
        return
    assert all(0 <= x <= 1 for x in found)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    """No folder, no weights and no JSON each say which file."""
    with pytest.raises(MisuseError, match=r"estimator\.json: no such file"):
        load(tmp_path / "none")
    save(tiny(), tmp_path / "est")
    (tmp_path / "est" / "weights.safetensors").unlink()
    with pytest.raises(FailureError, match=r"weights\.safetensors"):
        load(tmp_path / "est")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"price": -1.0}, "price"),
        ({"price": float("nan")}, "price"),
        ({"margin": 2.0}, "margin"),
        ({"folds": 1}, "2 folds"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_without_meaning_are_refused(bad: dict[str, float], message: str) -> None:
    """A price, margin, number of folds or seed out of range is one message."""
    with pytest.raises(MisuseError, match=message):
        TrainingSettings(**bad)  # type: ignore[arg-type]


def test_one_variant_cannot_be_trained_on() -> None:
    """Rollouts of one λ alone say that two are needed."""
    with pytest.raises(MisuseError, match="at least two variants"):
        train(grid_of([Rollout("a", "x", 0.5, 1.0, 3)]))


@pytest.mark.parametrize(("correct", "tokens"), [(1.0, 7), (0.0, 7), (1.0, 0)])
def test_rollouts_that_prefer_nothing_are_refused(correct: float, tokens: int) -> None:
    """All right, all wrong or all without tokens, at one cost: there is nothing to learn, and it says so."""
    same = [Rollout(f"q{i}", f"text {i}", x, correct, tokens) for i in range(20) for x in LAMBDAS]
    with pytest.raises(MisuseError, match="hold no preference"):
        train(grid_of(same))


@pytest.mark.parametrize("correct", [0.0, 1.0])
def test_one_class_only_gives_the_cheapest(correct: float) -> None:
    """Where every answer is right, or every one wrong, the cheapest variant is what pays."""
    made = train(
        grid_of([Rollout(f"q{i}", f"text {i}", x, correct, int(10 + 90 * x)) for i in range(60) for x in LAMBDAS])
    )
    assert set(made.lambdas([f"new {i}" for i in range(20)])) == {0.0}


def test_too_few_queries_are_refused() -> None:
    """Fewer different queries than folds cannot be split."""
    with pytest.raises(MisuseError, match="cannot be split into 5 folds"):
        train(grid_of(rollouts(3)))


@given(labels=st.lists(st.integers(0, 6), min_size=8, max_size=40), folds=st.integers(2, 4), seed=st.integers(0, 99))
def test_the_same_text_is_never_on_both_sides(labels: list[int], folds: int, seed: int) -> None:
    """Parts cover every row once, and rows with one text, whatever its case and spaces, share a part."""
    texts = [f"Query  {label}" if i % 2 else f"query {label} " for i, label in enumerate(labels)]
    if len(set(labels)) < folds:
        with pytest.raises(MisuseError):
            folds_of(texts, folds, seed=seed)
        return
    parts = folds_of(texts, folds, seed=seed)
    assert sorted(int(i) for part in parts for i in part) == list(range(len(texts)))
    where = [{labels[int(i)] for i in part} for part in parts]
    assert sum(map(len, where)) == len(set(labels))
