"""The engine on the pair that ships with the package, against Transformers."""

from __future__ import annotations

import pytest
import torch

from dami_merge.lab import SHIPPED_PAIR
from dami_merge.lab.variants import load_variant
from dami_merge.live import Engine

QUERIES = ["3+7-2>5=", "1+2+3=", "9-4>3<2=", "9-4>3<2+5-3=", "8-1=", "2+2<9-5+1>7-3="]
LAMBDAS = [0.0, 1.0, 0.6, 0.37, 0.85, 0.5]


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The shipped pair in fp32."""
    return Engine.load(str(SHIPPED_PAIR / "instruct"), str(SHIPPED_PAIR / "thinking"), dtype="float32")


def test_a_mixed_batch_answers_as_each_variant_does_alone(engine: Engine) -> None:
    """Greedy answers of six rows at six λ in one batch are those of Transformers' generate on each variant."""
    prompts = [engine.texts.encode(f"<bos>{query}") for query in QUERIES]  # type: ignore[union-attr]
    answers = engine.generate(prompts, LAMBDAS, max_new_tokens=60)
    for prompt, lambda_, answer in zip(prompts, LAMBDAS, answers, strict=True):
        model = load_variant(SHIPPED_PAIR, lambda_)
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=60, do_sample=False)
        assert list(answer.tokens) == expected[0, len(prompt) :].tolist()
