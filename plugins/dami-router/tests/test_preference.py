"""The trained estimator: training, estimating, saving, and what it refuses."""

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

from dami_router.errors import DamiError, FailureError, MisuseError
from dami_router.estimators.basis import Basis
from dami_router.estimators.estimator import Estimator
from dami_router.estimators.features import STATISTICS, HashedText, statistics
from dami_router.estimators.linear import Design
from dami_router.estimators.log_probs import EstimationError
from dami_router.estimators.neighbours import Neighbours
from dami_router.estimators.query import Estimate, Query
from dami_router.estimators.sparse import SparseRows
from dami_router.estimators.store import load, save
from dami_router.estimators.trained import Trained
from dami_router.estimators.training import TrainingSettings, train
from dami_router.rollouts.folds import folds_of
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.records import Rollout

LAMBDAS = (0.0, 0.5, 1.0)


def rollouts(count: int, *, seed: int = 0, confidence: bool = False) -> list[Rollout]:
    """Questions with `hard` in them need λ=1, the others are right everywhere; thinking costs tokens."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        hard = bool(rng.random() < 0.5)
        text = f"{'hard' if hard else 'easy'} question about {'things ' * int(rng.integers(1, 9))} number {seed} {i}"
        sure = float(np.clip(rng.normal(0.2 if hard else 0.8, 0.1), 0, 1)) if confidence else None
        cost = 1.0 if confidence else None
        for x in LAMBDAS:
            right = x == 1.0 if hard else True
            made.append(Rollout(f"q{i}", text, x, float(right), int(10 + 100 * x), confidence=sure, probe_tokens=cost))
    return made


@pytest.fixture(scope="module")
def trained() -> Trained:
    """One estimator, trained on 200 questions."""
    return train(grid_of(rollouts(200)), TrainingSettings(knots=4))


def test_it_learns_which_queries_need_thinking(trained: Trained) -> None:
    """On 19 of 20 new questions or more, λ is 1 where only thinking helps, and 0 where it only costs."""
    held = grid_of(rollouts(100, seed=1))
    found = zip(held.texts, trained.lambdas_of(held.texts), strict=True)
    assert sum(x == (1.0 if text.startswith("hard") else 0.0) for text, x in found) >= 95


def test_it_is_an_estimator(trained: Trained) -> None:
    """It answers as the router asks, with its evidence, and the same λ as for many at once."""
    assert isinstance(trained, Estimator)
    text = "hard question about things things number 1 7"
    found = asyncio.run(trained.estimate(Query(text)))
    assert (found.lambda_, found.estimator) == (trained.lambdas_of([text])[0], "preference")
    assert float(found.evidence["gain"]) > 0.5
    assert float(found.evidence["extra_tokens"]) == pytest.approx(100, rel=0.2)


def test_training_is_deterministic(trained: Trained) -> None:
    """The same rollouts give the same bits."""
    again = train(grid_of(rollouts(200)), TrainingSettings(knots=4))
    texts = grid_of(rollouts(50, seed=2)).texts
    assert np.array_equal(again.of_texts(texts).gain, trained.of_texts(texts).gain)
    assert again.about == trained.about


@given(text=st.text(max_size=300))
def test_any_text_has_finite_features(text: str) -> None:
    """Numbers are finite, counts are positive, and both depend on the text alone."""
    numbers = statistics(text)
    assert len(numbers) == len(STATISTICS)
    assert np.isfinite(numbers).all()
    encoder = HashedText(64)
    row = encoder.encode([text]).dense()
    assert (encoder.encode([text]).values > 0).all()
    assert np.array_equal(encoder.encode(["other", text]).dense()[1:], row)


def test_surrogates_and_endless_texts_are_taken(trained: Trained) -> None:
    """Half a surrogate pair, a megabyte and an empty text each get a λ."""
    assert all(0 <= x <= 1 for x in trained.lambdas_of(["\ud800", "word " * 200_000, ""]))


def test_steps_are_centred_and_bounded() -> None:
    """On the training numbers every step has mean 0; far numbers are not extrapolated."""
    numbers = np.random.default_rng(0).normal(size=(100, 3))
    basis = Basis.fit(numbers, 5)
    expanded = basis.expand(numbers)
    assert expanded.shape == (100, basis.width)
    assert expanded.mean(axis=0) == pytest.approx(np.zeros(basis.width), abs=1e-9)
    assert np.abs(basis.expand(np.full((1, 3), 1e30))).max() <= 5.0


def test_a_confidence_without_its_cost_is_refused() -> None:
    """What a probe took is part of every budget: a confidence whose cost nobody stated is not trained on."""
    free = [replace(rollout, probe_tokens=None) for rollout in rollouts(60, confidence=True)]
    with pytest.raises(MisuseError, match="the confidence of 60 queries has no `probe_tokens`"):
        train(grid_of(free), TrainingSettings(knots=4, budget=0.9))


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


def test_a_saved_estimator_says_the_same(trained: Trained, tmp_path: Path) -> None:
    """What is saved reads back with equal λ, and holds no pickle and no training text."""
    save(trained, tmp_path / "est")
    again = load(tmp_path / "est")
    texts = grid_of(rollouts(20, seed=2)).texts
    assert again.lambdas_of(texts) == trained.lambdas_of(texts)
    assert again.trained_on == trained.trained_on
    assert {f.name for f in (tmp_path / "est").iterdir()} == {"estimator.json", "weights.safetensors"}
    assert b"question about" not in b"".join(f.read_bytes() for f in (tmp_path / "est").iterdir())
    with pytest.raises(MisuseError, match="already exists"):
        save(trained, tmp_path / "est")
    assert [f.name for f in tmp_path.iterdir()] == ["est"]


@pytest.fixture(scope="module")
def nearest() -> Trained:
    """One estimator of neighbours, trained on 200 questions."""
    return train(grid_of(rollouts(200)), TrainingSettings(method="neighbours"))


def test_neighbours_learn_which_queries_need_thinking(nearest: Trained, tmp_path: Path) -> None:
    """Averages over similar questions find the hard ones too, before and after a folder."""
    held = grid_of(rollouts(100, seed=1))
    save(nearest, tmp_path / "est")
    again = load(tmp_path / "est")
    assert again.name == "neighbours"
    assert again.lambdas_of(held.texts) == nearest.lambdas_of(held.texts)
    found = zip(held.texts, again.lambdas_of(held.texts), strict=True)
    assert sum(x == (1.0 if text.startswith("hard") else 0.0) for text, x in found) >= 95


def test_neighbours_are_the_nearest_by_distance() -> None:
    """The mean is over the queries at the smallest Euclidean distance, words and numbers together."""
    rng = np.random.default_rng(0)
    words = SparseRows.of([{int(i): float(rng.random()) for i in rng.integers(0, 9, 4)} for _ in range(60)], 9)
    design, targets = Design(rng.normal(size=(60, 2)), words), rng.normal(size=(60, 4))
    made = Neighbours.of(design.rows(np.arange(40)), targets[:40], 25)
    found = made.means(design.rows(np.arange(40, 60)), (1, 25))
    x = np.concatenate([design.dense, words.dense()], axis=1)
    order = np.argsort(((x[40:, None] - x[None, :40]) ** 2).sum(axis=2), axis=1)
    assert found[0] == pytest.approx(targets[order[:, 0]], abs=1e-5)
    assert found[1] == pytest.approx(targets[order[:, :25]].mean(axis=1), abs=1e-5)


@pytest.mark.parametrize("name", ["row", "column", "count", "targets"])
def test_damaged_neighbours_are_refused(nearest: Trained, tmp_path: Path, name: str) -> None:
    """Indices outside the tensors, another count and missing columns are one message."""
    from safetensors.numpy import load_file, save_file

    save(nearest, tmp_path / "est")
    file = tmp_path / "est" / "weights.safetensors"
    tensors = load_file(file)
    tensors[name] = tensors[name][:, :2].copy() if name == "targets" else tensors[name] + 10**6
    save_file(tensors, file)
    with pytest.raises(FailureError, match="do not match"):
        load(tmp_path / "est")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, "schema_version"),
        ({"extra": 1}, "extra"),
        ({"lambdas": [0.0, 0.5, 1.5]}, "lambdas"),
        ({"lambdas": [0.0, 1.0, 0.5]}, "do not match"),
        ({"lambdas": [0.0, 1.0]}, "do not match"),
        ({"price": -0.1}, "price"),
        ({"statistics": ["characters"]}, "the features of another version"),
        ({"evidence": ["confidence"]}, "do not match"),
        ({"encoder": {"kind": "endpoint", "dimensions": 7, "model": "m"}}, "expected the tensors"),
        ({"encoder": {"kind": "pickle", "dimensions": 7}}, "encoder"),
        ({"trained_on": ["../../x"]}, "trained_on"),
    ],
)
def test_a_foreign_description_is_refused(
    trained: Trained, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    """Unknown fields, ranges, orders and sizes that do not fit are each one message."""
    save(trained, tmp_path / "est")
    file = tmp_path / "est" / "estimator.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(FailureError, match=message):
        load(tmp_path / "est")


@cache
def tiny() -> Trained:
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
        found = load(folder).lambdas_of(["hard question", ""])
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
        ({"budget": 0.0}, "budget"),
        ({"budget": 1.1}, "budget"),
        ({"folds": 1}, "2 folds"),
        ({"method": "trees"}, "method"),
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
    assert set(made.lambdas_of([f"new {i}" for i in range(20)])) == {0.0}


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
