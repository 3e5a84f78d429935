"""Small real endpoints: two checkpoints of one architecture that share an ancestor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

VOCABULARY = 48


class Pair(NamedTuple):
    """The folders of two endpoints."""

    instruct: Path
    thinking: Path

    def recipe(self, lambda_: object = 0.5, **more: Any) -> str:
        """Return a recipe for the pair; `more` adds top-level keys."""
        return json.dumps(
            {
                "merge_method": "dami",
                "base_model": str(self.instruct),
                "models": [{"model": str(self.thinking)}],
                "parameters": {"lambda": lambda_},
                **more,
            }
        )


def make_pair(
    folder: Path, kind: str = "qwen3", *, layers: int = 4, tied: bool = True, dtype: torch.dtype = torch.bfloat16
) -> Pair:
    """Write a pair of `kind` (qwen3, llama, qwen3_moe) saved by Transformers itself."""
    model = _model(kind, layers, tied)
    pair = Pair(folder / "instruct", folder / "thinking")
    generator = torch.Generator().manual_seed(1)
    for side in pair:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(
                    0.1 * parameter.std().nan_to_num(1.0) * torch.randn(parameter.shape, generator=generator)
                )
        model.to(dtype).save_pretrained(side)
        model.to(torch.float32)
        write_tokenizer(side)
    return pair


def _model(kind: str, layers: int, tied: bool) -> Any:
    import transformers as t

    torch.manual_seed(0)
    common: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "intermediate_size": 48, "vocab_size": VOCABULARY, "tie_word_embeddings": tied,
    }  # fmt: skip
    if kind == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**common))
    if kind == "qwen3_moe":
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        return t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**common, **experts))
    return t.Qwen3ForCausalLM(t.Qwen3Config(**common))


def write_tokenizer(folder: Path, tokens: int = VOCABULARY) -> None:
    """Write tokenizer files with the given number of tokens."""
    vocabulary = {f"t{i}": i for i in range(tokens)}
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": {"type": "WhitespaceSplit"},
                "post_processor": None,
                "decoder": None,
                "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"},
            }
        )
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0", "chat_template": "{{ messages }}"})
    )


def write_raw(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    """Write a checkpoint from bare tensors and a config."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder
