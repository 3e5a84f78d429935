"""bf16: how far the logits are from exact arithmetic on exactly interpolated weights."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.live import logits_of, make_live_pair, variant
from support.pairs import Pair
from transformers import AutoModelForCausalLM

from dami_merge.live import Engine

LAMBDAS = [0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9]


def exact(pair: Pair, lambda_: float, prompt: list[int]) -> torch.Tensor:
    """The logits of the variant whose weights are interpolated in fp64 and never rounded, computed in fp64."""
    model = AutoModelForCausalLM.from_pretrained(pair.instruct, dtype=torch.float64)
    a, b = (load_file(side / "model.safetensors") for side in pair)
    merged = {name: (1 - lambda_) * a[name].double() + lambda_ * b[name].double() for name in a}
    model.load_state_dict(merged, strict=False)
    model.tie_weights()
    with torch.inference_mode():
        return model(torch.tensor([prompt])).logits[0]


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_bf16_rows_are_as_near_to_exact_as_built_bf16_variants(kind: str, tmp_path: Path) -> None:
    """Over seven λ and 96 positions the mixed rows' error is no larger than that of the built variants."""
    pair = make_live_pair(tmp_path, kind, dtype=torch.bfloat16, hidden_size=64, intermediate_size=128)
    engine = Engine.load(str(pair.instruct), str(pair.thinking), mode="mixed")
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, 48, (96,), generator=generator).tolist()
    mixed, built = [], []
    for lambda_, ours in zip(LAMBDAS, logits_of(engine, [prompt] * len(LAMBDAS), LAMBDAS), strict=True):
        reference = exact(pair, lambda_, prompt)
        with torch.inference_mode():
            theirs = variant(pair, lambda_)(torch.tensor([prompt])).logits[0]
        mixed.append(float((ours.double() - reference).norm() / reference.norm()))
        built.append(float((theirs.double() - reference).norm() / reference.norm()))
    assert 0 < statistics.mean(mixed) <= statistics.mean(built)
