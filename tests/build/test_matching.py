"""Tensors that lie differently in the two endpoints: experts joined or apart, and parts that only Instruct has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.builds import Built, build, same_bits, weights
from support.pairs import Pair, make_pair
from support.reference import assert_rounded

from dami_merge.build import chunks, compute
from dami_merge.checkpoints.checkpoint import open_checkpoint
from dami_merge.interpolation.formula import interpolate
from dami_merge.mergekit_adapter import run_merge
from dami_merge.recipes.explanation import interpolated
from dami_merge.recipes.recipe import parse_recipe
from dami_merge.recipes.recipe_advice import advise
from dami_merge.verify import verify_family
from dami_router.errors import CheckpointError, MisuseError

FAMILY = {"name": "Fam", "lambdas": [0, 0.3, 1]}


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def joined(tensors: dict[str, torch.Tensor], layers: int = 2, experts: int = 4) -> dict[str, torch.Tensor]:
    """Join experts as Transformers 5 and mergekit hold them."""
    made = {n: t for n, t in tensors.items() if ".experts." not in n}
    for layer in range(layers):
        stem = f"model.layers.{layer}.mlp.experts"
        parts = [[tensors[f"{stem}.{e}.{p}_proj.weight"] for p in ("gate", "up", "down")] for e in range(experts)]
        made[f"{stem}.gate_up_proj"] = torch.stack([torch.cat(p[:2]) for p in parts])
        made[f"{stem}.down_proj"] = torch.stack([p[2] for p in parts])
    return made


def check_variants(built: Built, sides: list[dict[str, torch.Tensor]]) -> None:
    for lambda_ in FAMILY["lambdas"]:
        found = weights(built.folder(lambda_))
        assert found.keys() == sides[0].keys()
        for name, value in found.items():
            other = sides[1].get(name)
            expected = sides[0][name] if other is None else interpolate(sides[0][name], other, lambda_)
            assert same_bits(value, expected), (lambda_, name)
            if other is not None:
                assert_rounded(value, sides[0][name], other, lambda_)


@pytest.mark.parametrize("fused", ["instruct", "thinking"])
def test_experts_joined_on_one_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused: str) -> None:
    """One side has a tensor for each expert, the other one for all: variants have Instruct's layout, bit for bit."""
    pair = make_pair(tmp_path, "qwen3_moe", layers=2)
    monkeypatch.setattr(chunks, "BLOCK", 700)  # no divisor of an expert's size
    assert compute.BLOCK > 700
    sides = [weights(side) for side in pair]
    save(getattr(pair, fused), joined(weights(getattr(pair, fused))))
    built = build(pair.recipe(0.5, family=FAMILY), tmp_path / "out")
    check_variants(built, [joined(side) for side in sides] if fused == "instruct" else sides)
    assert verify_family(built.out, deep=True).all_problems == []
    run_merge(pair.recipe(0.3), tmp_path / "theirs")
    theirs = weights(tmp_path / "theirs")
    ours = weights(built.folder(0.3))
    ours = ours if fused == "instruct" else joined(ours)
    assert ours.keys() == theirs.keys()
    assert all(same_bits(ours[name], theirs[name]) for name in ours)


def test_experts_that_are_joined_transposed_are_refused(tmp_path: Path) -> None:
    """Another order of the numbers in a joined tensor is not taken for the known one."""
    pair = make_pair(tmp_path, "qwen3_moe", layers=2)
    tensors = joined(weights(pair.thinking))
    save(pair.thinking, {n: t.transpose(1, 2) if ".experts." in n else t for n, t in tensors.items()})
    with pytest.raises(CheckpointError, match="thinking lacks"):
        build(pair.recipe(0.5, family=FAMILY), tmp_path / "out")


def with_talker(pair: Pair) -> None:
    """Give Instruct a part that Thinking lacks: weights, and an integer buffer."""
    tensors = load_file(pair.instruct / "model.safetensors")
    tensors["talker.model.layers.0.mlp.up_proj.weight"] = torch.randn(6, 5).bfloat16()
    tensors["talker.codec.steps"] = torch.arange(3)
    save(pair.instruct, tensors)


def test_a_part_that_only_instruct_has(tmp_path: Path) -> None:
    """Refused as it is; with `only_instruct` the part is Instruct's in every variant, which is said."""
    pair = make_pair(tmp_path, "qwen3", layers=2)
    with_talker(pair)
    with pytest.raises(CheckpointError, match=r"thinking lacks 2 tensors: `talker\.codec\.steps`"):
        build(pair.recipe(0.5, family=FAMILY), tmp_path / "out")
    built = build(pair.recipe(0.5, only_instruct=["talker."], family=FAMILY), tmp_path / "out")
    check_variants(built, [weights(side) for side in pair])
    assert any("2 tensors are Instruct's alone" in warning for warning in built.report.warnings)
    assert verify_family(built.out, deep=True).all_problems == []
    tensors = load_file(built.folder(1) / "model.safetensors")
    tensors["talker.model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save(built.folder(1), tensors)
    found = {(p.code, p.tensor) for p in verify_family(built.out, deep=True).all_problems}
    assert ("weights", "talker.model.layers.0.mlp.up_proj.weight") in found


def test_a_recipe_without_a_family_keeps_its_lambda(tmp_path: Path) -> None:
    """Instruct's part does not count in the variant's λ, needs no filter of its own, and takes the recipe's dtype."""
    pair = make_pair(tmp_path, "qwen3", layers=2)
    with_talker(pair)
    recipe = pair.recipe([{"filter": "model.", "value": 0.4}], only_instruct=["talker."], dtype="float32")
    built = build(recipe, tmp_path / "out")
    (variant,) = built.report.manifest.variants
    assert variant.lambda_ == 0.4
    assert weights(built.out / variant.folder)["talker.model.layers.0.mlp.up_proj.weight"].dtype == torch.float32
    assert verify_family(built.out, deep=True).all_problems == []


def test_check_and_explain_leave_the_part_out(tmp_path: Path) -> None:
    """λ is resolved for what is interpolated: a filter list need not name Instruct's part."""
    pair = make_pair(tmp_path, "qwen3", layers=2)
    with_talker(pair)
    recipe = parse_recipe(pair.recipe([{"filter": "model.", "value": 0.4}], only_instruct=["talker."]))
    instruct = open_checkpoint(recipe.instruct)
    names = interpolated(recipe, instruct)
    assert set(instruct.tensors) - set(names) == {"talker.model.layers.0.mlp.up_proj.weight", "talker.codec.steps"}
    assert advise(recipe, instruct) == []


def test_a_filter_that_names_nothing_is_pointed_out(tmp_path: Path) -> None:
    """A part that Thinking has too is interpolated, and the needless filter is a warning."""
    pair = make_pair(tmp_path, "qwen3", layers=2)
    built = build(pair.recipe(0.5, only_instruct=["mlp."], family=FAMILY), tmp_path / "out")
    assert any("`only_instruct: mlp.` names no tensor" in warning for warning in built.report.warnings)
    check_variants(built, [weights(side) for side in pair])


@pytest.mark.parametrize("value", ["talker.", [], [""], ["*"], [3], None, {"a": 1}])
def test_only_instruct_is_a_list_of_names(tmp_path: Path, value: Any) -> None:
    """Anything but a list of pieces of names is refused with its place."""
    text = json.dumps(
        {
            "merge_method": "dami", "base_model": "a/b", "models": [{"model": "c/d"}], "parameters": {"lambda": 0.5},
            "only_instruct": value,
        }
    )  # fmt: skip
    with pytest.raises(MisuseError, match="only_instruct"):
        parse_recipe(text)
