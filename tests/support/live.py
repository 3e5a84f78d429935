"""Small pairs of many architectures for the live engine, and the variants that it is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dami_merge.interpolation.depth import Anatomy
from dami_merge.interpolation.formula import interpolate
from dami_merge.interpolation.path import parse_path
from dami_merge.live import Engine
from dami_merge.live.attention import ForwardStep, KeyValues, RowSpan
from dami_merge.live.pair_model import Batch
from support.pairs import VOCABULARY, Pair, write_tokenizer


def make_live_pair(
    folder: Path, kind: str = "qwen3", *, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any
) -> Pair:
    """Write a pair with random weights everywhere: biases and norms too, and far apart, so that λ matters."""
    settings: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "intermediate_size": 48, "vocab_size": VOCABULARY, "tie_word_embeddings": True,
        "max_position_embeddings": 512, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2, **config,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**settings))
    pair = Pair(folder / "instruct", folder / "thinking")
    for side in pair:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                norm = "norm" in name
                parameter.copy_(float(norm) + (0.3 if norm else 0.15) * torch.randn(parameter.shape))
        model.to(dtype).save_pretrained(side)
        model.float()
        write_tokenizer(side)
    return pair


def variant(
    pair: Pair, lambda_: float, path: str = "uniform", dtype: torch.dtype | None = None, attention: str = "sdpa"
) -> Any:
    """Return Transformers' model of the variant at λ, merged as `dami build` merges."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        pair.instruct, dtype=dtype or "auto", attn_implementation=attention
    )
    ends = [load_file(side / "model.safetensors") for side in pair]
    anatomy = Anatomy.of(ends[0], model.config.to_dict())
    curve = parse_path(path)
    merged = {}
    for name in ends[0]:
        a, b = (end[name].to(dtype or end[name].dtype) for end in ends)
        merged[name] = interpolate(a, b, curve.lambda_at(lambda_, anatomy.place(name)))
    missing, unexpected = model.load_state_dict(merged, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


@torch.inference_mode()
def logits_of(engine: Engine, prompts: Sequence[Sequence[int]], lambdas: Sequence[float]) -> list[torch.Tensor]:
    """Return the logits (tokens, vocabulary) of every prompt, read together in one pass."""
    cache = KeyValues(engine.model.device)
    runs = [RowSpan(i, 0, len(prompt)) for i, prompt in enumerate(prompts)]
    cache.reserve(len(prompts), max(map(len, prompts)))
    owners = tuple((engine.model.vector(v), len(p)) for v, p in zip(lambdas, prompts, strict=True))
    ids = [token for prompt in prompts for token in prompt]
    logits = engine.model.forward(Batch(ids, ForwardStep([], runs, cache), owners, 1))(range(len(ids)))
    return list(logits.split([len(prompt) for prompt in prompts]))


def far_apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
