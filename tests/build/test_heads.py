"""Heads, tied and untied: a stored head is never replaced, and what a loaded variant has is what the endpoints have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.builds import Built, build, same_bits, weights
from support.pairs import Pair, make_pair
from support.reference import assert_formula

from dami_merge.checkpoints.checkpoint import open_checkpoint
from dami_merge.checkpoints.compatibility import compare
from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.interpolation.formula import interpolate
from dami_merge.mergekit_adapter import run_merge
from dami_merge.verify import verify_family

FAMILY = {"name": "Fam", "lambdas": [0, 0.3, 1]}
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


def change_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    text = values.pop("text", {})
    (folder / "config.json").write_text(
        json.dumps(config | values | ({"text_config": config["text_config"] | text} if text else {}))
    )


def own_head(folder: Path, seed: int) -> None:
    """Store a head that differs from the embeddings."""
    noise = torch.Generator().manual_seed(seed)
    change_weights(
        folder,
        lambda t: t.update(
            {HEAD: (t[table(t)] + torch.randn(t[table(t)].shape, generator=noise)).to(t[table(t)].dtype)}
        ),
    )


def table(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in tensors if name.endswith("embed_tokens.weight"))


def vision_pair(folder: Path, kind: str) -> Pair:
    """A vision-language pair as Transformers 5 saves one that was made from a text config with tied embeddings."""
    text = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 48, "vocab_size": 40, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "depth": 2, "num_heads": 4, "intermediate_size": 48, "patch_size": 4, "out_hidden_size": 32,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    made = transformers.CONFIG_MAPPING[kind].from_dict(
        {"model_type": kind, "text_config": text, "vision_config": vision}
    )
    pair = Pair(folder / "instruct", folder / "thinking")
    for seed, side in enumerate(pair):
        torch.manual_seed(seed)
        model = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(made)](made)
        model.to(torch.bfloat16).save_pretrained(side)
        own_head(side, seed)
        change_config(side, tie_word_embeddings=False, text={"tie_word_embeddings": True})
    return pair


def check_formula(built: Built, pair: Pair) -> None:
    """Assert that every stored tensor is the formula's, with a head that is not stored taken from the embeddings."""
    sides = [weights(side) for side in pair]
    for side in sides:
        side.setdefault(HEAD, side[table(side)])
    for lambda_ in FAMILY["lambdas"]:
        assert_formula(weights(built.folder(lambda_)), sides, lambda_)


@pytest.mark.parametrize("kind", ["qwen3_vl_moe", "qwen3_vl"])
def test_a_stored_head_is_never_replaced(tmp_path: Path, kind: str) -> None:
    """text_config ties, the top level does not, and a head is stored: it is the endpoint's own in every variant."""
    pair = vision_pair(tmp_path, kind)
    built = build(pair.recipe(0.5, family=FAMILY), tmp_path / "out")
    check_formula(built, pair)
    assert verify_family(built.out, deep=True).all_problems == []
    for lambda_, side in ((0, pair.instruct), (0.3, None), (1, pair.thinking)):
        folder = built.folder(lambda_)
        model, told = transformers.AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert not told["missing_keys"]
        assert not told["unexpected_keys"]
        head = model.get_output_embeddings().weight
        assert same_bits(head, weights(side or folder)[HEAD])
        assert not torch.equal(head, model.get_input_embeddings().weight)
        config = json.loads((folder / "config.json").read_text())
        assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is False


@pytest.mark.parametrize("tied", [0, 1], ids=["instruct", "thinking"])
def test_one_tied_side_makes_untied_variants(tmp_path: Path, tied: int) -> None:
    """Where one endpoint ties and the other has a head of its own, the tied one's embeddings are its head."""
    pair = make_pair(tmp_path / "pair", "qwen3", layers=2)
    other = pair[1 - tied]
    own_head(other, 5)
    change_config(other, tie_word_embeddings=False)
    built = build(pair.recipe(0.5, family=FAMILY), tmp_path / "out")
    check_formula(built, pair)
    assert verify_family(built.out, deep=True).all_problems == []
    assert any("ties its head" in warning for warning in built.report.warnings)
    for lambda_, side in ((0, pair.instruct), (1, pair.thinking)):
        logits = [
            transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([[1, 2, 3]])).logits
            for folder in (side, built.folder(lambda_))
        ]
        assert torch.equal(*logits)
    run_merge(pair.recipe(0.3), tmp_path / "theirs")
    mine, theirs = weights(built.folder(0.3)), weights(tmp_path / "theirs")
    assert mine.keys() == theirs.keys()
    assert all(same_bits(mine[name], theirs[name]) for name in mine)


def test_a_head_that_a_tied_side_stores_equal_or_not_decides(tmp_path: Path) -> None:
    """With the flag set, a stored copy of the embeddings is the embeddings; a head that differs is a head."""
    pair = make_pair(tmp_path / "pair", "qwen3", layers=2)
    copy = {"name": "Fam", "lambdas": [0.5], "path": "late(1)"}
    for side in pair:
        change_weights(side, lambda t: t.update({HEAD: t[TABLE].clone()}))
    made = weights(build(pair.recipe(0.5, family=copy), tmp_path / "equal").folder(0.5))
    assert same_bits(made[HEAD], made[TABLE])
    for seed, side in enumerate(pair):
        own_head(side, seed)
    built = build(pair.recipe(0.5, family=copy), tmp_path / "own")
    made = weights(built.folder(0.5))
    sides = [weights(side) for side in pair]
    assert same_bits(made[HEAD], interpolate(sides[0][HEAD], sides[1][HEAD], 1.0))  # late(1): λ=1 at the head
    assert same_bits(made[TABLE], interpolate(sides[0][TABLE], sides[1][TABLE], 0.0))
    config = json.loads((built.folder(0.5) / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_an_untied_endpoint_without_a_head_is_refused(tmp_path: Path) -> None:
    """A head that is neither stored nor tied does not exist: the side that lacks it is named."""
    pair = make_pair(tmp_path, "qwen3", layers=2, tied=False)
    change_weights(pair.thinking, lambda t: t.pop(HEAD))
    found = compare(*(open_checkpoint(ModelRef(str(side))) for side in pair))
    assert [(f.code, f.message) for f in found if f.severity == "error"] == [
        ("names", "thinking lacks 1 tensors: `lm_head.weight`")
    ]


def test_verify_finds_a_replaced_head(tmp_path: Path) -> None:
    """A variant whose head was replaced by its embeddings, or whose config would drop the head, is not sound."""
    pair = vision_pair(tmp_path, "qwen3_vl")
    out = build(pair.recipe(0.5, family=FAMILY), tmp_path / "out").out
    folder = out / "Fam-l030"
    change_config(folder, tie_word_embeddings=True)
    problems = verify_family(out).all_problems
    assert {(p.code, p.file) for p in problems} == {("hash", "config.json"), ("head", "config.json")}
    change_config(folder, tie_word_embeddings=False)
    change_weights(folder, lambda t: t.update({HEAD: t[table(t)].clone()}))
    problems = verify_family(out, deep=True).all_problems
    assert ("weights", HEAD) in {(p.code, p.tensor) for p in problems}
