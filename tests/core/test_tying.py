"""Which models tie head and embeddings, and what a loaded model then has: held against Transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from dami_merge.checkpoints.checkpoint import open_checkpoint
from dami_merge.checkpoints.matching import shares_head
from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.checkpoints.tying import embeddings_of, heads, ties, untied

TEXT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "vocab_size": 40, "pad_token_id": 0,
}  # fmt: skip
EXPERTS: dict[str, Any] = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "depth": 1, "num_hidden_layers": 1, "num_heads": 4, "num_attention_heads": 4,
    "intermediate_size": 48, "patch_size": 4, "image_size": 16, "out_hidden_size": 32, "embed_dim": 32,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
}  # fmt: skip
FLAT = [
    "llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "ministral3", "gemma2", "gemma3_text", "olmo3", "lfm2",
    "granite", "glm4_moe", "cohere2", "mixtral",
]  # fmt: skip
NESTED = [
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "gemma3", "mistral3", "llava", "internvl", "glm4v",
]  # fmt: skip
FLAGS = [None, False, True]


def config_of(kind: str, top: bool | None, inner: bool | None) -> dict[str, Any]:
    """A small config.json of a kind, with the flag (or without it) at the top and in text_config."""
    said: dict[str, Any] = {"model_type": kind}
    if kind in FLAT:
        return said | TEXT | EXPERTS | ({} if top is None else {"tie_word_embeddings": top})
    text = TEXT | EXPERTS | ({} if inner is None else {"tie_word_embeddings": inner})
    said |= {"text_config": text, "vision_config": dict(VISION)}
    return said | ({} if top is None else {"tie_word_embeddings": top})


def class_of(kind: str, config: dict[str, Any]) -> tuple[Any, Any]:
    made = transformers.CONFIG_MAPPING[kind].from_dict(dict(config))
    mapping = (
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING if kind in FLAT else transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    )
    return mapping[type(made)], made


@pytest.mark.parametrize("kind", [*FLAT, *NESTED])
def test_ties_are_those_of_transformers_model(kind: str) -> None:
    """For each class and every combination of flags, the answer is what Transformers' model ties."""
    for top in FLAGS:
        for inner in FLAGS if kind in NESTED else [None]:
            config = config_of(kind, top, inner)
            model_class, made = class_of(kind, config)
            with torch.device("meta"):
                model = model_class(made)
            tied = [name for name in model.all_tied_weights_keys if "lm_head" in name]
            assert ties(config) is bool(tied), (top, inner)
            assert ties(untied(config)) is False
            names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
            assert heads(names) == ["lm_head.weight"]
            table = next(
                name for name, value in model.named_parameters() if value is model.get_input_embeddings().weight
            )
            assert embeddings_of(names) == table


@pytest.mark.parametrize("stored", ["none", "equal", "different"])
@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "gemma3", "mistral3"])
def test_a_shared_head_is_one_tensor_in_the_loaded_model(tmp_path: Path, kind: str, stored: str) -> None:
    """Whatever the flags say and whatever is stored, head and embeddings are one in Transformers where we say so."""
    for top in FLAGS:
        for inner in FLAGS if kind in NESTED else [None]:
            folder = tmp_path / f"{top}-{inner}"
            model_class, made = class_of(kind, config_of(kind, top, inner))
            torch.manual_seed(0)
            model_class(made).save_pretrained(folder)
            config = json.loads((folder / "config.json").read_text())
            written = config_of(kind, top, inner)
            for place, flag in ((config, top), (config.get("text_config", {}), inner)):
                place.pop("tie_word_embeddings", None)
                place |= {} if flag is None else {"tie_word_embeddings": flag}
            (folder / "config.json").write_text(json.dumps(config))
            assert ties(config) is ties(written)
            store_head(folder, stored)
            side = open_checkpoint(ModelRef(str(folder)))
            if stored == "none" and not side.tied:
                continue  # no head at all: a broken checkpoint
            loaded = model_class.from_pretrained(folder)
            head, table = loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight
            assert shares_head(side, "lm_head.weight") is (head is table), (top, inner)


def store_head(folder: Path, stored: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    table = tensors[embeddings_of(tensors) or ""]
    tensors.pop("lm_head.weight", None)
    if stored != "none":
        tensors["lm_head.weight"] = table.clone() if stored == "equal" else table + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_model_that_transformers_does_not_know_is_taken_at_its_word() -> None:
    """The first flag decides, top level before text_config; without one, nothing is tied."""
    assert ties({"model_type": "strange", "tie_word_embeddings": True})
    assert ties({"model_type": "strange", "text_config": {"tie_word_embeddings": True}})
    flags = {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}
    assert not ties({"model_type": "strange", **flags})
    assert not ties({"model_type": "strange"})


def test_heads_of_other_parts_are_not_the_models() -> None:
    """Draft layers and speech parts have heads and embeddings of their own."""
    names = ["model.embed_tokens.weight", "lm_head.weight", "mtp.embed_tokens.weight", "mtp.lm_head.weight",
             "model.layers.61.embed_tokens.weight", "model.layers.61.shared_head.head.weight",
             "talker.codec_head.weight"]  # fmt: skip
    assert heads(names) == ["lm_head.weight"]
    assert embeddings_of(names) == "model.embed_tokens.weight"
    parts = ["talker.model.embed_tokens.weight", "thinker.model.embed_tokens.weight"]
    assert embeddings_of(parts, "thinker.lm_head.weight") == "thinker.model.embed_tokens.weight"
