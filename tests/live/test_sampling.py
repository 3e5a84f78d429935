"""Choosing the next token, and log-probabilities."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.live import make_live_pair, variant

from dami_merge.live import Engine, Generation
from dami_merge.live.sampling import Sampler, pick, score

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -30.0])


def drawn(count: int, logits: torch.Tensor = LOGITS, **options: object) -> Counter[int]:
    """How often each token is drawn from the same logits by one row."""
    sampler = Sampler(Generation([0], 0.5, seed=1, **options))  # type: ignore[arg-type]
    found: Counter[int] = Counter()
    for _ in range(count):
        found[pick(logits[None], [sampler])[0].token] += 1
        sampler.advance()
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
            sampler.advance()
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
