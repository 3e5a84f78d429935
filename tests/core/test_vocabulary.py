"""When rows of two vocabularies mean the same tokens, and what is said where they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.builds import Built, build, same_bits, weights
from support.pairs import VOCABULARY, Pair, make_pair, write_raw, write_tokenizer

from dami_merge.checkpoints.checkpoint import open_checkpoint
from dami_merge.checkpoints.compatibility import compare
from dami_merge.checkpoints.findings import Finding
from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.interpolation.formula import interpolate
from dami_merge.mergekit_adapter import run_merge
from dami_merge.verify import verify_family
from dami_router.errors import CheckpointError

CONFIG = {"architectures": ["Tiny"], "model_type": "tiny", "num_hidden_layers": 1, "tie_word_embeddings": True}
FAMILY = {"name": "Fam", "lambdas": [0, 0.4, 1]}
TABLE = "model.embed_tokens.weight"


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Two small checkpoints with 48 tokens each, of which the last eight are special."""
    base = torch.randn(VOCABULARY, 16)
    sides = [{TABLE: base + 0.1 * torch.randn(base.shape), "model.norm.weight": torch.ones(16) + i} for i in range(2)]
    made = Pair(*(write_raw(tmp_path / name, tensors, CONFIG) for name, tensors in zip("it", sides, strict=True)))
    for side in made:
        tokenizer(side, lambda t: t.update(added_tokens=[{"content": f"t{i}", "id": i} for i in range(40, 48)]))
    return made


def tokenizer(folder: Path, change: Any) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))


def rename(folder: Path, names: dict[int, str]) -> None:
    """Give special tokens other names at their ids."""

    def change(data: Any) -> None:
        for token in data["added_tokens"]:
            data["model"]["vocab"].pop(token["content"])
            token["content"] = names.get(token["id"], token["content"])

    tokenizer(folder, change)


def findings(pair: Pair) -> list[Finding]:
    return compare(*(open_checkpoint(ModelRef(str(side))) for side in pair))


def codes(found: list[Finding]) -> list[tuple[str, str]]:
    return [(f.severity, f.code) for f in found]


def test_renamed_special_tokens_are_a_warning(pair: Pair) -> None:
    """Special tokens with another name at the same id are listed, and the pair builds."""
    rename(pair.thinking, {40: "<think>", 41: "</think>"})
    (found,) = findings(pair)
    assert (found.severity, found.code) == ("warning", "special_tokens")
    assert (
        "2 special tokens have another name in thinking: 40 `t40` → `<think>`, 41 `t41` → `</think>`" in found.message
    )
    assert "carry Instruct's tokenizer" in found.message
    assert found.hint is None


def test_a_template_that_needs_the_renamed_tokens_is_pointed_out(pair: Pair) -> None:
    """Thinking's template would be split into pieces by Instruct's tokenizer where it uses a renamed token."""
    rename(pair.thinking, {40: "<|User|>"})
    (pair.thinking / "chat_template.jinja").write_text("<|User|>{{ messages }}")
    (found,) = findings(pair)
    assert found.hint is not None
    assert "keep `chat_template: instruct`" in found.hint
    assert "`<|User|>`" in found.hint


def test_special_tokens_at_other_ids_are_a_warning(pair: Pair) -> None:
    """Two special tokens that change places are named with both ids."""
    rename(pair.thinking, {40: "t41", 41: "t40"})
    assert codes(findings(pair)) == [("warning", "special_tokens")] * 2
    assert "`t40` is 40 in instruct, 41 in thinking" in findings(pair)[1].message


def test_ordinary_tokens_at_other_ids_are_refused(pair: Pair) -> None:
    """One ordinary token under two ids is an error that names it."""
    tokenizer(pair.thinking, lambda t: t["model"]["vocab"].update(t1=2, t2=1))
    (found,) = findings(pair)
    assert (found.severity, found.code) == ("error", "vocabulary")
    assert "`t1`, `t2`" in str(found)


@pytest.mark.parametrize("special", [False, True])
def test_an_ordinary_token_in_anothers_place_is_refused(pair: Pair, special: bool) -> None:
    """An id that is an ordinary token on one side and another token, ordinary or special, on the other is an error."""

    def change(data: Any) -> None:
        data["model"]["vocab"].pop("t5")
        data["model"]["vocab"]["other"] = 5
        if special:
            data["added_tokens"].append({"content": "other", "id": 5})

    tokenizer(pair.thinking, change)
    (found,) = findings(pair)
    assert (found.severity, found.code) == ("error", "vocabulary")
    assert "5 is `t5` in instruct, `other` in thinking" in found.message


def test_tokens_in_one_vocabulary_only(pair: Pair) -> None:
    """Tokens that one side lacks, at ids that the other does not use, are a warning."""
    tokenizer(pair.thinking, lambda t: t["model"]["vocab"].update(t48=48, t49=49))
    assert codes(findings(pair)) == [("warning", "vocabulary")]


def padded(folder: Path, rows: int) -> None:
    """Give a Qwen3 checkpoint other numbers of rows in embeddings and head, as padding."""
    tensors = weights(folder)
    for name in (TABLE, "lm_head.weight"):
        old = tensors[name]
        noise = torch.randn(max(rows - len(old), 0), old.shape[1]).to(old.dtype)
        tensors[name] = torch.cat([old, noise])[:rows].contiguous()
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))


def check_rows(built: Built, pair: Pair, shared: int) -> None:
    sides = [weights(side) for side in pair]
    for lambda_ in FAMILY["lambdas"]:
        found = weights(built.folder(lambda_))
        for name, value in found.items():
            a, b = sides[0][name], sides[1][name]
            if name in (TABLE, "lm_head.weight"):
                assert value.shape == a.shape
                assert same_bits(value[shared:], a[shared:])
                value, a, b = value[:shared], a[:shared], b[:shared]
            assert same_bits(value, interpolate(a, b, lambda_)), name


@pytest.mark.parametrize("rows", [(64, VOCABULARY), (VOCABULARY, 64), (60, 64)])
def test_padding_rows_are_kept_or_dropped(tmp_path: Path, rows: tuple[int, int]) -> None:
    """Shared rows are interpolated; Instruct's surplus rows are its own, Thinking's are dropped, and both is said."""
    pair = make_pair(tmp_path, "qwen3", layers=2, tied=False)
    for side, count in zip(pair, rows, strict=True):
        padded(side, count)
    found = next(f for f in findings(pair) if f.code == "vocabulary_padding")
    assert f"{rows[0]} rows in instruct, {rows[1]} in thinking; tokens use {VOCABULARY}" in found.message
    assert ("Instruct's own" if rows[0] > rows[1] else "dropped") in found.message
    assert found.tool == "dami build"
    built = build(pair.recipe(0.5, family=FAMILY), tmp_path / "out")
    check_rows(built, pair, min(rows))
    assert any("padding" in warning for warning in built.report.warnings)
    assert verify_family(built.out, deep=True).all_problems == []
    with pytest.raises(ValueError, match="size mismatch"):
        run_merge(pair.recipe(0.4), tmp_path / "theirs")


def test_rows_that_tokens_use_are_not_padding(tmp_path: Path) -> None:
    """Where a token's id lies beyond the smaller matrix, or nobody can tell, sizes that differ are an error."""
    pair = make_pair(tmp_path, "qwen3", layers=2, tied=False)
    padded(pair.thinking, 64)
    write_tokenizer(pair.thinking, tokens=50)
    with pytest.raises(CheckpointError, match=r"vocabularies of different size.*tokens use 50 of them"):
        build(pair.recipe(0.5, family=FAMILY), tmp_path / "out")
    for side in pair:
        (side / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="vocabularies of different size"):
        build(pair.recipe(0.5, family=FAMILY), tmp_path / "out")
