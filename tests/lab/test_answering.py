"""Greedy answering: what it returns, and that batching changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from dami_merge.lab import SHIPPED_PAIR, draw_queries
from dami_merge.lab.answering import answer, probe
from dami_merge.lab.tiny_model import load_endpoint, new_model

TEXTS = [q.text for q in draw_queries("test")[:40]]


@pytest.fixture(scope="module")
def instruct() -> Qwen3ForCausalLM:
    """The shipped Instruct endpoint."""
    return load_endpoint(SHIPPED_PAIR / "instruct")


@pytest.fixture(scope="module")
def thinking() -> Qwen3ForCausalLM:
    """The shipped Thinking endpoint."""
    return load_endpoint(SHIPPED_PAIR / "thinking")


def test_answers_agree_with_transformers_own_generation(thinking: Qwen3ForCausalLM) -> None:
    """Text and token count are those of `generate` from the chat template, one query at a time."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_PAIR / "thinking")
    for text, ours in zip(TEXTS[:3], answer(thinking, TEXTS[:3]), strict=True):
        chat = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True, add_generation_prompt=True)
        out = thinking.generate(**ids, max_new_tokens=160)[0, ids["input_ids"].shape[1] :]
        assert (tokenizer.decode(out, skip_special_tokens=True), len(out)) == (ours.text, ours.tokens)


def test_batching_changes_no_answer(thinking: Qwen3ForCausalLM) -> None:
    """Queries come back in the order given, the same alone as in company."""
    few = TEXTS[:8]
    together = answer(thinking, TEXTS)[:8]
    alone = answer(thinking, few[::-1], batch=1)[::-1]
    assert [(a.text, a.tokens, a.finish_reason) for a in together] == [
        (a.text, a.tokens, a.finish_reason) for a in alone
    ]
    assert [a.direct for a in together] == pytest.approx([a.direct for a in alone], rel=1e-3, abs=1e-6)


def test_tokens_count_the_end_of_text(instruct: Qwen3ForCausalLM) -> None:
    """A direct answer is two tokens, the digit and <eos>, with a log-probability each."""
    direct = [a for a in answer(instruct, TEXTS) if not a.think]
    assert direct
    assert {(len(a.text), a.tokens, len(a.logprobs), a.finish_reason) for a in direct} == {(1, 2, 2, "stop")}


def test_evidence_is_the_models_own_probability(instruct: Qwen3ForCausalLM) -> None:
    """`direct` and the log-probabilities are what a plain forward pass gives."""
    text = TEXTS[0]
    (ours,) = answer(instruct, [text])
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_PAIR / "instruct")
    with torch.inference_mode():
        logits = instruct(**tokenizer("<bos>" + text, return_tensors="pt")).logits[0, -1]
    p = logits.softmax(dim=-1)
    digits = tokenizer.convert_tokens_to_ids(list("0123456789"))
    assert ours.direct == pytest.approx(float(p[digits].max()), rel=1e-4)
    assert ours.logprobs[0] == pytest.approx(float(p.max().log()), rel=1e-3, abs=1e-5)
    assert ours.confidence == pytest.approx(math.exp(sum(ours.logprobs) / len(ours.logprobs)))


def test_a_limit_cuts_answers_off_and_says_so(thinking: Qwen3ForCausalLM) -> None:
    """A probe of 4 tokens returns the first 4 tokens of the whole answer, finished only where it had ended."""
    for short, whole in zip(probe(thinking, TEXTS, tokens=4), answer(thinking, TEXTS), strict=True):
        assert short.tokens == min(4, whole.tokens)
        assert short.finish_reason == ("stop" if whole.tokens <= 4 else "length")
        assert whole.text.startswith(short.text)


def test_an_untrained_model_is_cut_off_at_the_limit() -> None:
    """Even a model that never ends its text stops at the limit."""
    answers = answer(new_model(0).eval(), TEXTS[:5], max_new_tokens=12)
    assert all(a.tokens == 12 or a.finish_reason == "stop" for a in answers)


def test_no_queries_give_no_answers(instruct: Qwen3ForCausalLM) -> None:
    """An empty list is answered by an empty list."""
    assert answer(instruct, []) == []


@pytest.mark.parametrize("bad", [{"max_new_tokens": 0}, {"batch": 0}])
def test_limits_below_one_are_refused(instruct: Qwen3ForCausalLM, bad: dict[str, int]) -> None:
    """The error names both limits."""
    with pytest.raises(ValueError, match="at least 1"):
        answer(instruct, TEXTS[:1], **bad)
