"""Rows at their own λ give the logits of the variants that `dami build` would make."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builds import build
from support.live import far_apart, logits_of, make_live_pair, variant
from support.pairs import VOCABULARY, Pair
from transformers import AutoModelForCausalLM

from dami_merge.live import Engine, Generation
from dami_merge.live.blend import WeightSource

lambdas = st.floats(0, 1, allow_subnormal=False)
prompts = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12)
paths = st.sampled_from(["uniform", "late(0.5)", "early(1)", "power(2)"])


@st.composite
def architectures(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A dense architecture with everything that a module may have or lack."""
    kind = draw(st.sampled_from(["qwen3", "llama", "qwen2", "mistral"]))
    config: dict[str, Any] = {
        "tie_word_embeddings": draw(st.booleans()),
        "num_hidden_layers": draw(st.integers(1, 4)),
        "num_key_value_heads": draw(st.sampled_from([1, 2, 4])),
    }
    if kind in ("qwen3", "llama"):
        config["attention_bias"] = draw(st.booleans())
    if kind == "llama":
        config["mlp_bias"] = draw(st.booleans())
    if kind == "mistral":
        config["sliding_window"] = draw(st.sampled_from([None, 4]))
    if kind == "qwen2" and draw(st.booleans()):
        config |= {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    return kind, config


@settings(max_examples=16)
@given(architectures(), paths, st.lists(st.tuples(lambdas, prompts), min_size=1, max_size=4), st.integers(0, 1000))
def test_logits_of_a_mixed_batch_are_those_of_the_variants(
    architecture: tuple[str, dict[str, Any]], path: str, rows: list[tuple[float, list[int]]], seed: int
) -> None:
    """In fp32 every row's logits are within 1e-4 of its variant's, for random architectures, paths and λ."""
    kind, config = architecture
    with tempfile.TemporaryDirectory() as folder:
        pair = make_live_pair(Path(folder), kind, seed=seed, **config)
        engine = Engine.load(str(pair.instruct), str(pair.thinking), path=path, mode="mixed")
        found = logits_of(engine, [prompt for _, prompt in rows], [lambda_ for lambda_, _ in rows])
        assert engine.model.source is WeightSource.MIXED  # type: ignore[attr-defined]
        for ours, (lambda_, prompt) in zip(found, rows, strict=True):
            with torch.inference_mode():
                theirs = variant(pair, lambda_, path)(torch.tensor([prompt])).logits[0]
            assert far_apart(ours, theirs) <= 1e-4


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A Llama pair with every bias there is and an untied head."""
    folder = tmp_path_factory.mktemp("biased")
    return make_live_pair(folder, "llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=False)


FILTERS = [{"filter": "bias", "value": "power(3)"}, {"filter": "mlp", "value": "late(1)"}, {"value": "uniform"}]


def test_a_bias_may_have_another_lambda_than_its_weight(biased: Pair, tmp_path: Path) -> None:
    """With a filter list of paths the mixed logits are those of the family that `dami build` makes from it."""
    family = {"name": "F", "lambdas": [0.3, 0.7], "path": FILTERS}
    built = build(biased.recipe(0.5, family=family), tmp_path / "out")
    engine = Engine.load(str(biased.instruct), str(biased.thinking), path=FILTERS, mode="mixed")
    prompt = [3, 1, 4, 1, 5, 9]
    for lambda_, ours in zip((0.3, 0.7), logits_of(engine, [prompt, prompt], [0.3, 0.7]), strict=True):
        model = AutoModelForCausalLM.from_pretrained(built.folder(lambda_))
        with torch.inference_mode():
            assert far_apart(ours, model(torch.tensor([prompt])).logits[0]) <= 1e-4


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("side", [0, 1])
def test_an_endpoints_lambda_gives_the_endpoint_itself(kind: str, side: int, tmp_path: Path) -> None:
    """A single row at λ=0 or 1 has the very logits of the endpoint's plain Transformers model, bit for bit."""
    pair = make_live_pair(tmp_path, kind)
    engine = Engine.load(str(pair.instruct), str(pair.thinking))
    prompt = [7, 3, 3, 40, 11]
    (ours,) = logits_of(engine, [prompt], [float(side)])
    with torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(pair[side])(torch.tensor([prompt])).logits[0]
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "mistral"])
def test_whole_answers_are_those_of_generate_on_the_built_variants(kind: str, tmp_path: Path) -> None:
    """Greedy answers of a batch at many λ, decoded token by token, equal Transformers' generate on built variants."""
    pair = make_live_pair(tmp_path, kind, num_hidden_layers=2)
    chosen = [0.0, 0.2, 0.5, 0.9, 1.0]
    built = build(pair.recipe(0.5, family={"name": "F", "lambdas": chosen}), tmp_path / "out")
    engine = Engine.load(str(pair.instruct), str(pair.thinking))
    asked = [[i + 1, 5, 9, i + 2][: i + 1] for i in range(len(chosen))]
    answers = engine.generate(asked, chosen, max_new_tokens=20, ignore_eos=True)
    for lambda_, prompt, answer in zip(chosen, asked, answers, strict=True):
        model = AutoModelForCausalLM.from_pretrained(built.folder(lambda_))
        model.generation_config.eos_token_id = None
        written = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=20, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        assert list(answer.tokens) == written[0, len(prompt) :].tolist()


def test_a_schedule_is_a_lambda_for_every_layer(tmp_path: Path) -> None:
    """Rows may ask for schedules; each answers as a merge with that schedule, and a recipe's is the default."""
    from dami_merge.interpolation.schedule import parse_lambda
    from dami_merge.recipes.recipe import parse_recipe

    pair = make_live_pair(tmp_path)
    prompt = [2, 8, 2, 8]
    recipes = {text: pair.recipe(text) for text in ("ramp(0, 1)", "step(0.2, 0.9, at=1)")}
    engine = Engine.from_recipe(parse_recipe(recipes["ramp(0, 1)"]), mode="mixed")
    rows = [None, parse_lambda("step(0.2, 0.9, at=1)")]
    answers = engine.complete(
        [Generation(prompt, v, max_new_tokens=8, log_probs=True, ignore_eos=True) for v in rows]  # type: ignore[arg-type]
    )
    for (text, recipe), answer in zip(recipes.items(), answers, strict=True):
        out = tmp_path / text[:4]
        (folder,) = (out / v.folder for v in build(recipe, out).report.manifest.variants)
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.inference_mode():
            scores = model(torch.tensor([[*prompt, *answer.tokens]])).logits[0].log_softmax(-1)
        expected = [float(scores[len(prompt) - 1 + i, token]) for i, token in enumerate(answer.tokens)]
        assert answer.log_probs == pytest.approx(expected, abs=1e-4)
