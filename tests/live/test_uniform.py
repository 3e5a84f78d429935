"""One λ for all rows: the merged buffer, and when it is merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.builds import build, same_bits, weights
from support.live import far_apart, logits_of, make_live_pair, variant
from support.pairs import Pair

from dami_merge.live import Engine, Generation
from dami_merge.live.blend import WeightSource
from dami_merge.live.pair_model import PairModel
from dami_merge.live.weights_mode import Policy

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A Qwen3 pair in bf16 with an untied head."""
    return make_live_pair(
        tmp_path_factory.mktemp("pair"), dtype=torch.bfloat16, tie_word_embeddings=False, max_position_embeddings=1024
    )


def load(pair: Pair, **options: object) -> tuple[Engine, PairModel]:
    """Load a pair and return the engine with its model."""
    engine = Engine.load(str(pair.instruct), str(pair.thinking), **options)  # type: ignore[arg-type]
    assert isinstance(engine.model, PairModel)
    return engine, engine.model


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
@pytest.mark.parametrize("path", ["uniform", "late(1)"])
def test_the_buffer_holds_the_very_weights_that_build_writes(
    pair: Pair, path: str, dtype: str | None, tmp_path: Path
) -> None:
    """After each change of λ every merged tensor equals the built file's, bit for bit."""
    chosen = [0.3, 0.5, 0.85]
    family = {"name": "F", "lambdas": chosen, "path": path}
    built = build(pair.recipe(0.5, family=family, **({"dtype": dtype} if dtype else {})), tmp_path / "out")
    engine, model = load(pair, mode="uniform", path=path, dtype=dtype)
    for lambda_ in (0.5, 0.3, 0.85, 0.3):
        engine.generate([PROMPT], [lambda_], max_new_tokens=2)
        files = weights(built.folder(lambda_))
        assert {p.name for p in model.pairs} == set(files)
        for tensor in model.pairs:
            assert tensor.merged is not None
            assert same_bits(tensor.merged, files[tensor.name])


def test_uniform_logits_are_the_built_variants_own(pair: Pair) -> None:
    """A single row through the merged buffer has the very logits of the variant in Transformers, in bf16."""
    engine, model = load(pair, mode="uniform")
    (ours,) = logits_of(engine, [PROMPT], [0.6])
    with torch.inference_mode():
        theirs = variant(pair, 0.6)(torch.tensor([PROMPT])).logits[0]
    assert model.source is WeightSource.MERGED
    assert same_bits(ours, theirs)


def test_memory_is_two_models_and_a_third_only_once_it_is_needed(pair: Pair) -> None:
    """Weights take two models in mixed mode and at endpoint λ; the first merge adds one model, later ones nothing."""
    size = sum(tensor.nbytes for tensor in weights(pair.instruct).values())
    engine, model = load(pair)
    engine.generate([PROMPT] * 4, [0.0, 0.2, 0.4, 1.0], max_new_tokens=30)
    engine.generate([PROMPT] * 2, [1.0, 1.0], max_new_tokens=30)
    assert model.nbytes == {"endpoints": 2 * size, "merged": 0}
    engine.generate([PROMPT], [0.4], max_new_tokens=100, ignore_eos=True)
    engine.generate([PROMPT], [0.7], max_new_tokens=100, ignore_eos=True)
    assert model.nbytes == {"endpoints": 2 * size, "merged": size}


def test_auto_uses_what_is_cheapest(pair: Pair) -> None:
    """Endpoint λ never merge, short answers and different λ mix, a long answer at one λ merges once."""
    engine, model = load(pair, prefill=1024)
    seen = []

    def sources(lambdas: list[float], tokens: int) -> set[WeightSource]:
        seen.clear()
        for lambda_ in lambdas:
            engine.add(Generation(PROMPT, lambda_, max_new_tokens=tokens, ignore_eos=True))
        while engine.busy:
            engine.step()
            seen.append(model.source)
        return set(seen)

    assert sources([0.0, 0.0], 20) == {WeightSource.INSTRUCT}
    assert sources([1.0], 20) == {WeightSource.THINKING}
    assert sources([0.0, 1.0], 20) == {WeightSource.MIXED}
    assert sources([0.3], 6) == {WeightSource.MIXED}
    assert sources([0.5], 40) == {WeightSource.MIXED, WeightSource.MERGED}
    assert seen.index(WeightSource.MERGED) == 8
    assert seen[8:] == [WeightSource.MERGED] * 32
    assert sources([0.5], 4) == {WeightSource.MERGED}
    assert sources([0.5, 0.6], 20) == {WeightSource.MIXED}
    # A long prompt is dearer than a merge, whatever comes after it.
    engine.add(Generation(PROMPT * 103, 0.7, max_new_tokens=1))
    engine.step()
    assert model.source is WeightSource.MERGED


def test_uniform_mode_works_on_one_lambda_at_a_time(pair: Pair) -> None:
    """Rows at another λ wait until those before them have ended, and every pass has one set of weights."""
    engine, model = load(pair, mode="uniform")
    rows = [engine.add(Generation(PROMPT, v, max_new_tokens=3, ignore_eos=True)) for v in (0.4, 0.4, 0.8, 0.4)]
    finished = []
    while engine.busy:
        events = engine.step()
        assert model.source is WeightSource.MERGED
        assert len({event.row.generation.lambda_ for event in events}) == 1
        finished += [event.row for event in events if event.finish_reason]
    assert finished == rows


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.3, 0.6, 1.0]), st.integers(1, 3)), min_size=1, max_size=60))
def test_the_policy_never_reads_a_buffer_that_holds_another_lambda(passes: list[tuple[float, int]]) -> None:
    """Whatever comes, merged weights are used only for the λ that they hold, and never merged for it again."""
    policy, holds = Policy("auto", patience=3), None
    for lambda_, rows in passes:
        vectors = {(lambda_,) if i == 0 else (0.5 + i / 10,) for i in range(rows)}
        decision = policy.choose(vectors, holds, tokens=1, ahead=10)
        if decision.merge:
            assert holds != (lambda_,)
            holds = (lambda_,)
        if decision.source is WeightSource.MERGED:
            assert vectors == {holds}
        if len(vectors) > 1:
            assert decision.source is WeightSource.MIXED


def test_mixed_and_merged_answers_agree_in_fp32(tmp_path: Path) -> None:
    """Switching from mixed to merged weights in the middle of an answer moves logits by rounding only."""
    pair = make_live_pair(tmp_path)
    engine, _ = load(pair, mode="mixed")
    (mixed,) = logits_of(engine, [PROMPT], [0.4])
    engine, _ = load(pair, mode="uniform")
    (merged,) = logits_of(engine, [PROMPT], [0.4])
    assert far_apart(mixed, merged) <= 1e-5
