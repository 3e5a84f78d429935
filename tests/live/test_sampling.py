"""Choosing the next token, and log-probabilities."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.live import make_live_pair, variant
from transformers import GenerationConfig, LogitsProcessorList, Qwen3Config, Qwen3ForCausalLM

from dami_merge.live import Engine, Generation
from dami_merge.live.sampling import Sampler, distribution, penalise, pick, score

TINY = Qwen3Config(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -30.0])


def drawn(count: int, logits: torch.Tensor = LOGITS, **options: object) -> Counter[int]:
    """How often each token is drawn from the same logits by one row."""
    sampler = Sampler(Generation([0], 0.5, seed=1, **options))  # type: ignore[arg-type]
    found: Counter[int] = Counter()
    for _ in range(count):
        token = pick(logits[None], [sampler])[0].token
        found[token] += 1
        sampler.advance(token)
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature: float) -> None:
    """Over 1,500 draws every token's share is within four standard errors of its probability at that temperature."""
    expected = (LOGITS / temperature).softmax(-1).tolist()
    found = drawn(1500, temperature=temperature)
    for token, p in enumerate(expected):
        assert abs(found[token] / 1500 - p) <= 4 * (p * (1 - p) / 1500) ** 0.5 + 1e-9


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    """top_k keeps k tokens; top_p the fewest that reach it, of what top_k left; the first token always stays."""
    p = LOGITS.softmax(-1).tolist()
    assert set(drawn(500, temperature=1.0, top_k=2)) == {0, 1}
    assert set(drawn(500, temperature=1.0, top_p=p[0] + p[1] - 0.01)) == {0, 1}
    assert set(drawn(500, temperature=1.0, top_p=p[0] + p[1] + 0.01)) == {0, 1, 2}
    assert set(drawn(200, temperature=1.0, top_p=1e-6)) == {0}
    # Of the two that top_k leaves, the first alone has 73 %.
    assert set(drawn(500, temperature=1.0, top_k=2, top_p=0.7)) == {0}


def test_greedy_is_the_likeliest_whatever_else_is_said() -> None:
    """At temperature 0 the other sampling parameters change nothing."""
    assert set(drawn(20, temperature=0.0, top_k=3, top_p=0.1)) == {0}


rows = st.tuples(st.integers(0, 2**40), st.floats(0, 3), st.floats(0.05, 1), st.integers(0, 9))


@given(st.lists(rows, min_size=1, max_size=6), st.integers(0, 100))
def test_a_draw_depends_on_its_own_row_only(asked: list[tuple[int, float, float, int]], seed: int) -> None:
    """A row's token is the same alone and in any batch, for any mixture of sampling parameters."""
    logits = torch.randn(len(asked), 50, generator=torch.Generator().manual_seed(seed))
    generations = [Generation([0], 0.5, seed=s, temperature=t, top_p=p, top_k=k) for s, t, p, k in asked]
    together = pick(logits, [Sampler(g) for g in generations])
    assert together == [pick(row[None], [Sampler(g)])[0] for row, g in zip(logits, generations, strict=True)]


def test_seeds_repeat_and_no_seed_does_not() -> None:
    """The same seed draws the same tokens again; without one, two rows differ."""
    logits = torch.zeros(1000)

    def ten(seed: int | None) -> list[int]:
        sampler = Sampler(Generation([0], 0.5, temperature=1.0, seed=seed))
        found = []
        for _ in range(10):
            found.append(pick(logits[None], [sampler])[0].token)
            sampler.advance(found[-1])
        return found

    assert ten(7) == ten(7) != ten(8)
    assert ten(None) != ten(None)


def test_scores_are_log_probabilities_with_the_likeliest_beside_them() -> None:
    """score gives log softmax of the raw logits, and its top tokens in falling order."""
    (found,) = score(LOGITS[None], [3], top=2)
    expected = LOGITS.log_softmax(-1)
    assert found.log_prob == pytest.approx(float(expected[3]))
    assert [token for token, _ in found.top] == [0, 1]
    assert [value for _, value in found.top] == pytest.approx(expected[:2].tolist())


settings_of_a_row = st.fixed_dictionaries({
    "temperature": st.floats(0.2, 3),
    "top_k": st.integers(0, 40),
    "top_p": st.floats(0.05, 1),
    "min_p": st.sampled_from([0.0, 0.02, 0.2, 1.0]),
    "typical_p": st.sampled_from([0.1, 0.7, 0.95, 1.0]),
    "repetition_penalty": st.sampled_from([0.7, 1.0, 1.1, 2.0]),
})  # fmt: skip


def processed(logits: torch.Tensor, tokens: list[int], asked: Generation) -> torch.Tensor:
    """The probabilities that Transformers' own processors leave after these tokens."""
    config = GenerationConfig(
        do_sample=True, temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p,
        min_p=asked.min_p or None, typical_p=asked.typical_p, repetition_penalty=asked.repetition_penalty,
    )  # fmt: skip
    model = Qwen3ForCausalLM(TINY)
    processors = model._get_logits_processor(
        config, input_ids_seq_length=len(tokens), encoder_input_ids=None, prefix_allowed_tokens_fn=None,
        logits_processor=LogitsProcessorList(), device="cpu",
    )  # fmt: skip
    scores: torch.Tensor = processors(torch.tensor([tokens]), logits[None].clone())
    return scores[0].softmax(-1)


@given(st.lists(settings_of_a_row, min_size=1, max_size=4), st.integers(0, 1000))
def test_rows_draw_from_what_transformers_processors_leave(asked: list[dict[str, float]], seed: int) -> None:
    """Penalty, temperature, top_k, top_p, min_p and typical_p together leave Transformers' own distribution."""
    numbers = random.Random(seed)
    logits = 3 * torch.randn(len(asked), 50, generator=torch.Generator().manual_seed(seed))
    samplers = []
    texts = []
    for options in asked:
        prompt, answer = ([numbers.randrange(50) for _ in range(n)] for n in (numbers.randint(1, 9), 6))
        sampler = Sampler(Generation(prompt, 0.5, **options))  # type: ignore[arg-type]
        for token in answer:
            sampler.advance(token)
        samplers.append(sampler)
        texts.append(prompt + answer)
    weights, order = distribution(penalise(logits, samplers), [sampler.generation for sampler in samplers])
    for row, (text, sampler) in enumerate(zip(texts, samplers, strict=True)):
        found = torch.zeros(50, dtype=torch.float64).scatter(0, order[row], weights[row] / weights[row].sum())
        expected = processed(logits[row], text, sampler.generation)
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("penalty", [1.5, 2.5])
def test_a_repetition_penalty_writes_what_generate_writes(tmp_path: Path, penalty: float) -> None:
    """Greedy answers with a repetition penalty equal Transformers' generate; log-probabilities stay the model's own."""
    pair = make_live_pair(tmp_path, seed=5)
    engine = Engine.load(str(pair.instruct), str(pair.thinking))
    prompt = [5, 9, 2, 33, 5]
    plain, (answer,) = (
        engine.complete([Generation(prompt, 0.4, max_new_tokens=24, ignore_eos=True, log_probs=True, **more)])
        for more in ({}, {"repetition_penalty": penalty})
    )
    model = variant(pair, 0.4)
    model.generation_config.eos_token_id = None
    written = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=24, do_sample=False,
        repetition_penalty=penalty, pad_token_id=0,
    )  # fmt: skip
    assert list(answer.tokens) == written[0, len(prompt) :].tolist() != list(plain[0].tokens)
    with torch.inference_mode():
        scores = model(written).logits[0].log_softmax(-1)
    expected = [float(scores[len(prompt) - 1 + i, token]) for i, token in enumerate(answer.tokens)]
    assert answer.log_probs == pytest.approx(expected, abs=1e-4)


def test_presence_and_frequency_are_subtracted_for_written_tokens_only() -> None:
    """OpenAI's definition: once where the answer holds a token, and for each time; the prompt does not count."""
    sampler = Sampler(Generation([0, 1], 0.5, presence_penalty=0.5, frequency_penalty=0.25))
    for token in (2, 2, 3):
        sampler.advance(token)
    change = penalise(LOGITS[None], [sampler])[0] - LOGITS
    assert change.tolist() == pytest.approx([0, 0, -1.0, -0.75, 0, 0])
    assert penalise(LOGITS[None], [sampler])[0].tolist() == pytest.approx((LOGITS + change).tolist())


def test_a_penalised_row_does_not_change_the_others() -> None:
    """In one batch each row is penalised by its own settings and its own text."""
    logits = torch.tensor([[1.0, 0.9, -1.0]] * 3)
    strong, weak, none = (Sampler(Generation([0], 0.5, repetition_penalty=p)) for p in (2.0, 1.05, 1.0))
    assert [picked.token for picked in pick(logits, [strong, weak, none])] == [1, 0, 0]
    none.advance(0)
    assert pick(logits[2:], [none])[0].token == 0


@pytest.mark.parametrize("prefill", [3, 512])
def test_log_probs_are_the_variants_own(tmp_path: Path, prefill: int) -> None:
    """Prompt and answer are scored as Transformers scores them on the variant, also read in pieces."""
    pair = make_live_pair(tmp_path)
    engine = Engine.load(str(pair.instruct), str(pair.thinking), prefill=prefill)
    prompt = [5, 9, 2, 33, 5, 9, 11]
    asked = Generation(
        prompt, 0.35, max_new_tokens=6, temperature=1.3, seed=4, ignore_eos=True, log_probs=True, top_log_probs=3,
        prompt_log_probs=2,
    )  # fmt: skip
    silent = Generation([1, 2, 3, 4], 0.8, max_new_tokens=9, ignore_eos=True)
    answer, other = engine.complete([asked, silent])
    with torch.inference_mode():
        logits = variant(pair, 0.35)(torch.tensor([[*prompt, *answer.tokens]])).logits[0]
    expected = logits.log_softmax(-1)
    assert answer.prompt_log_probs is not None
    assert [p.token for p in answer.prompt_log_probs] == prompt
    assert (answer.prompt_log_probs[0].log_prob, answer.prompt_log_probs[0].top) == (None, ())
    whole = [*answer.prompt_log_probs[1:]]
    for i, scored in enumerate(whole):
        assert scored.log_prob == pytest.approx(float(expected[i, scored.token]), abs=1e-4)
        assert [t for t, _ in scored.top] == expected[i].topk(2).indices.tolist()
    for i, (token, value, top) in enumerate(zip(answer.tokens, answer.log_probs, answer.top, strict=True)):
        place = expected[len(prompt) - 1 + i]
        assert value == pytest.approx(float(place[token]), abs=1e-4)
        assert [t for t, _ in top] == place.topk(3).indices.tolist()
    assert (other.log_probs, other.top, other.prompt_log_probs) == ((), (), None)
