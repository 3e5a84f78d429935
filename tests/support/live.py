"""Small pairs of many architectures for the live engine, and the variants that it is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dami_merge.interpolation.depth import Anatomy
from dami_merge.interpolation.formula import interpolate
from dami_merge.interpolation.path import parse_path
from dami_merge.live import Engine
from dami_merge.live.attention import ForwardStep, KeyValues, RowSpan
from dami_merge.live.pair_model import Batch
from support.pairs import VOCABULARY, Pair, write_tokenizer

_QWEN_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4}
_ENCODER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION: dict[str, dict[str, Any]] = {
    "gemma3": {**_ENCODER, "patch_size": 4, "image_size": 16},
    "mistral3": {**_ENCODER, "model_type": "pixtral", "head_dim": 8, "patch_size": 4, "image_size": 16},
    "qwen2_vl": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
    "qwen2_5_vl": {**_QWEN_VISION, "out_hidden_size": 32, "fullatt_block_indexes": [0], "window_size": 16},
    "qwen3_vl": {**_QWEN_VISION, "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
}
"""Small vision towers of the models that have one; the engine leaves them out."""


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
    kinds = CONFIG_MAPPING[kind]
    if "vision_config" in kinds.sub_configs:
        text = settings | settings.pop("text_config", {})
        made = kinds(text_config=text, vision_config=VISION[kind], tie_word_embeddings=text["tie_word_embeddings"])
    else:
        made = kinds(**settings)
    model = model_class(made)._from_config(made)
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


def model_class(config: Any) -> Any:
    """Return Transformers' class for a config: of a language model, or of one that reads images too."""
    known = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return next(mapping[type(config)] for mapping in known if type(config) in mapping)


def variant(
    pair: Pair, lambda_: float, path: str = "uniform", dtype: torch.dtype | None = None, attention: str = "sdpa"
) -> Any:
    """Return Transformers' model of the variant at λ, merged as `dami build` merges."""
    ends = [load_file(side / "model.safetensors") for side in pair]
    config = transformers.AutoConfig.from_pretrained(pair.instruct)
    anatomy = Anatomy.of(ends[0], config.to_dict())
    curve = parse_path(path)
    merged = {}
    for name in ends[0]:
        a, b = (end[name].to(dtype or end[name].dtype) for end in ends)
        merged[name] = interpolate(a, b, curve.lambda_at(lambda_, anatomy.place(name)))
    model, info = model_class(config).from_pretrained(
        None, config=config, state_dict=merged, dtype=dtype or "auto", attn_implementation=attention,
        output_loading_info=True,
    )  # fmt: skip
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
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
