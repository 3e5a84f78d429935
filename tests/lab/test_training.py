"""Training, in small: the same seed gives the same bytes, and nothing half-written looks finished."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch

from dami_merge.lab.splits import TRAINED_LENGTHS, split_of
from dami_merge.lab.task import format_answer
from dami_merge.lab.tiny_model import MODEL_CONFIG, new_model, one_thread, save_endpoint
from dami_merge.lab.tokenizer import TOKENS
from dami_merge.lab.training_pair import (
    ALWAYS_DIRECT,
    MOSTLY_CHECKS,
    THINKS_BY_LENGTH,
    Stage,
    _batches,
    _run,
    train_pair,
)
from dami_router.errors import FailureError


def _train(seed: int, directory: Path) -> list[tuple[str, float]]:
    losses: list[tuple[str, float]] = []
    train_pair(
        seed,
        directory,
        base_steps=6,
        tune_steps=3,
        progress=lambda stage, done, steps, loss: losses.append((stage, loss)),
    )
    return losses


def test_a_seed_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    """Two runs with one seed write equal files; another seed, and the other endpoint, differ."""
    losses = _train(7, tmp_path / "a")
    torch.rand(3)  # a different global random state must not matter
    assert _train(7, tmp_path / "b") == losses
    _train(8, tmp_path / "c")
    bytes_of = {d: (tmp_path / d / "model.safetensors").read_bytes() for d in
                ("a/instruct", "b/instruct", "c/instruct", "a/thinking", "b/thinking")}  # fmt: skip
    assert bytes_of["a/instruct"] == bytes_of["b/instruct"]
    assert bytes_of["a/thinking"] == bytes_of["b/thinking"]
    assert len(set(bytes_of.values())) == 3
    assert [stage for stage, _ in losses] == ["base"] * 6 + ["instruct"] * 3 + ["thinking"] * 3


def test_training_lowers_the_loss() -> None:
    """Thirty steps on answers alone bring the loss well under that of a model that knows nothing."""
    losses: list[float] = []
    stage = Stage("base", MOSTLY_CHECKS, 30, 3e-3, 5)
    with one_thread():
        _run(new_model(0), stage, 0, lambda _stage, _done, _steps, loss: losses.append(loss))
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]


def test_training_refuses_to_overwrite(tmp_path: Path) -> None:
    """An endpoint that is there stops the run before any training, and stays as it is."""
    (tmp_path / "thinking").mkdir()
    with pytest.raises(FailureError, match="thinking already exists"):
        _train(0, tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "thinking"]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the last file cannot be written, no directory of that name appears."""
    monkeypatch.setattr(
        "dami_merge.lab.tiny_model.write_tokenizer", lambda _directory: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        save_endpoint(new_model(0).state_dict(), tmp_path / "instruct")
    assert list(tmp_path.iterdir()) == []


def test_loss_is_on_answers_alone() -> None:
    """In every batch the labelled tokens are one right answer to the prompt before them, prompts unlabelled."""
    for inputs, labels in islice(_batches(Random(0), THINKS_BY_LENGTH), 5):
        assert inputs.shape == labels.shape
        assert inputs.numel() <= 1024 + 2 * inputs.shape[1]
        for ids, wanted in zip(inputs.tolist(), labels.tolist(), strict=True):
            answer = "".join(TOKENS[t] for t in wanted if t >= 0)
            chain = "".join(TOKENS[t] for t in ids[1 : next(i for i, t in enumerate(wanted) if t >= 0)])
            styles = ("direct", "think", "check")
            assert answer in [format_answer(chain, s) + "<eos>" for s in styles]  # type: ignore[arg-type]
            assert split_of(chain) == "train"


def test_base_thinks_more_about_longer_chains() -> None:
    """The base's gate rises with length; the fine-tunes always or never think."""
    rng = Random(0)
    share = {n: sum(THINKS_BY_LENGTH.draw(rng, n) != "direct" for _ in range(2000)) / 2000 for n in TRAINED_LENGTHS}
    assert share[1] == pytest.approx(THINKS_BY_LENGTH.shortest, abs=0.03)
    assert share[TRAINED_LENGTHS[-1]] == pytest.approx(THINKS_BY_LENGTH.longest, abs=0.03)
    assert {ALWAYS_DIRECT.draw(rng, n) for n in TRAINED_LENGTHS} == {"direct"}
    assert {MOSTLY_CHECKS.draw(rng, n) for n in TRAINED_LENGTHS for _ in range(50)} == {"think", "check"}


def test_learning_rates_rise_and_fall_as_described() -> None:
    """Warm-up reaches the peak; linear decay ends near 0, cosine at a twentieth of the peak."""
    linear, cosine = Stage("a", ALWAYS_DIRECT, 200, 1.0, 10), Stage("b", ALWAYS_DIRECT, 2000, 1.0, 100, cosine=True)
    assert linear.rate(0) == pytest.approx(0.1)
    assert linear.rate(9) == linear.rate(10) == cosine.rate(100) == pytest.approx(1.0)
    assert linear.rate(199) == pytest.approx(0.0, abs=0.01)
    assert cosine.rate(1999) == pytest.approx(0.05, abs=0.001)


def test_model_is_the_one_described() -> None:
    """215,104 parameters, tied embeddings, and the same random weights for the same seed."""
    first, again, other = new_model(3), new_model(3), new_model(4)
    assert 214_000 < sum(p.numel() for p in first.parameters()) < 216_000
    assert first.lm_head.weight is first.model.embed_tokens.weight
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert first.config.vocab_size == len(TOKENS) == MODEL_CONFIG["vocab_size"]
