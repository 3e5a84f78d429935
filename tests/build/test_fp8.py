"""fp8 endpoints: read with their scales, streamed like the rest, written as bf16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.builds import build, same_bits, weights
from support.pairs import Pair, make_pair, write_raw
from support.reference import assert_formula
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from dami_merge.build import chunks, stream
from dami_merge.checkpoints.checkpoint import open_checkpoint
from dami_merge.checkpoints.compatibility import compare
from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.verify import verify_family
from dami_router.errors import CheckpointError

FAMILY = {"name": "Fam", "lambdas": [0, 0.3, 0.7, 1]}
FP8 = torch.float8_e4m3fn
CONFIG: dict[str, Any] = {"architectures": ["Tiny"], "model_type": "tiny", "num_hidden_layers": 1}
NAME = "model.layers.0.mlp.up_proj.weight"
BLOCK = {"quant_method": "fp8", "weight_block_size": [4, 6]}
TENSOR: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": None}
CHANNEL = {
    "quant_method": "compressed-tensors", "format": "float-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
}  # fmt: skip


def spread(scale: torch.Tensor, shape: torch.Size, block: tuple[int, int]) -> torch.Tensor:
    """The scale of every element, in float64, written out by index."""
    if scale.numel() == 1:
        return scale.double().reshape(1).expand(shape)
    made = torch.empty(shape, dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in shape)).tolist():
        place = (*index[:-2], index[-2] // block[0], index[-1] // block[1])
        made[tuple(index)] = float(scale[tuple(place[: scale.ndim])])
    return made


def reference(stored: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """The bf16 that a stored fp8 tensor stands for: the product in float64, rounded to fp32, then to bf16."""
    return (stored.double() * spread(scale, stored.shape, block)).float().bfloat16()


LAYOUTS: dict[str, tuple[dict[str, Any], tuple[int, ...], str, tuple[int, ...], tuple[int, int], torch.dtype]] = {
    # config, shape, name of the scale, its shape, the block that shares one, its dtype
    "blocks": (BLOCK, (8, 12), "_scale_inv", (2, 2), (4, 6), torch.float32),
    "ragged blocks": (BLOCK, (10, 13), "_scale_inv", (3, 3), (4, 6), torch.float32),
    "bf16 scales": (BLOCK, (8, 12), "_scale_inv", (2, 2), (4, 6), torch.bfloat16),
    "powers of two": (BLOCK, (8, 12), "_scale_inv", (2, 2), (4, 6), torch.float8_e8m0fnu),
    "other blocks": (BLOCK, (6, 8), "_scale_inv", (3, 2), (2, 4), torch.float32),
    "tensor": (TENSOR, (8, 12), "_scale_inv", (), (8, 12), torch.float32),
    "tensor of one": (CHANNEL, (8, 12), "_scale", (1,), (8, 12), torch.float32),
    "rows": (CHANNEL, (8, 12), "_scale", (8, 1), (1, 12), torch.float32),
    "rows, bf16": (CHANNEL, (8, 12), "_scale", (8, 1), (1, 12), torch.bfloat16),
    "plain rows": (CHANNEL, (8, 12), "_scale", (8,), (1, 12), torch.float32),
    "stacked blocks": (BLOCK, (3, 8, 12), "_scale_inv", (3, 2, 2), (4, 6), torch.float32),
    "stacked tensors": (BLOCK, (3, 8, 12), "_scale_inv", (3, 1, 1), (8, 12), torch.float32),
}


def write_side(folder: Path, layout: str, seed: int) -> dict[str, torch.Tensor]:
    """Write an fp8 endpoint; return what its tensors stand for."""
    config, shape, suffix, grid, block, dtype = LAYOUTS[layout]
    noise = torch.Generator().manual_seed(seed)
    base = torch.Generator().manual_seed(99)
    name = NAME if len(shape) == 2 else "model.layers.0.mlp.experts.gate_up_proj"
    value = torch.randn(shape, generator=base) * 3 + 0.3 * torch.randn(shape, generator=noise)
    stored = value.to(FP8)
    scale = (torch.rand(grid, generator=noise) / 50 + 0.001).to(dtype)
    norm = torch.randn(12, generator=noise).bfloat16()
    extra = {name.removesuffix("weight") + "input_scale": torch.ones(1)} if name == NAME else {}
    write_raw(
        folder, {name: stored, name + suffix: scale, "model.norm.weight": norm, **extra},
        {**CONFIG, "quantization_config": config},
    )  # fmt: skip
    whole = scale.float().reshape(grid[0], 1) if layout == "plain rows" else scale.float()
    return {name: reference(stored, whole, block), "model.norm.weight": norm}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scales_of_every_kind(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, rows, tensors, stacks: variants are those of the bf16 that the file stands for, in any cut."""
    sides = [write_side(tmp_path / name, layout, seed) for seed, name in enumerate(("instruct", "thinking"))]
    pair = Pair(tmp_path / "instruct", tmp_path / "thinking")
    for block, chunk in ((1 << 19, 1 << 16), (17, 200)):
        monkeypatch.setattr(chunks, "BLOCK", block)
        monkeypatch.setattr(stream, "chunk_size", lambda buffers, chunk=chunk: chunk)
        built = build(pair.recipe(0.5, family=FAMILY), tmp_path / f"out{block}")
        for lambda_ in FAMILY["lambdas"]:
            assert_formula(weights(built.folder(lambda_)), sides, lambda_)
            config = json.loads((built.folder(lambda_) / "config.json").read_text())
            assert "quantization_config" not in config
        assert verify_family(built.out, deep=True).all_problems == []
    assert [w for w in built.report.warnings if "fp8" in w]


@pytest.mark.parametrize("layout", ["blocks", "other blocks", "bf16 scales", "powers of two", "stacked blocks"])
def test_the_same_numbers_as_transformers(tmp_path: Path, layout: str) -> None:
    """λ=0 and λ=1 are what Transformers' own dequantisation gives, bit for bit."""
    for seed, name in enumerate(("instruct", "thinking")):
        write_side(tmp_path / name, layout, seed)
    pair = Pair(tmp_path / "instruct", tmp_path / "thinking")
    built = build(pair.recipe(0.5, family=FAMILY), tmp_path / "out")
    for lambda_, side in ((0, pair.instruct), (1, pair.thinking)):
        stored = load_file(side / "model.safetensors")
        name = next(n for n in stored if stored[n].dtype == FP8)
        theirs = Fp8Dequantize(None)._dequantize_one(stored[name], stored[name + "_scale_inv"], torch.bfloat16)
        assert same_bits(weights(built.folder(lambda_))[name], theirs)


@pytest.mark.parametrize("quantised", ["instruct", "thinking", "both"])
def test_a_model_that_transformers_quantised(tmp_path: Path, quantised: str) -> None:
    """An fp8 Qwen3 beside a bf16 one, or two: variants load in bf16 with no missing key, equal to a bf16 build's."""
    plain = make_pair(tmp_path / "plain", "qwen3", layers=2, tied=False)
    pair = make_pair(tmp_path / "fp8", "qwen3", layers=2, tied=False)
    for side, bare in zip(pair, plain, strict=True):
        if quantised in (side.name, "both"):
            quantise(side, bare)
    ours = build(pair.recipe(0.5, family=FAMILY), tmp_path / "ours")
    theirs = build(plain.recipe(0.5, family=FAMILY), tmp_path / "theirs")
    for lambda_ in FAMILY["lambdas"]:
        mine, expected = weights(ours.folder(lambda_)), weights(theirs.folder(lambda_))
        assert mine.keys() == expected.keys()
        assert all(same_bits(mine[name], expected[name]) for name in mine)
        _, told = transformers.AutoModelForCausalLM.from_pretrained(ours.folder(lambda_), output_loading_info=True)
        assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert verify_family(ours.out, deep=True).all_problems == []


def quantise(folder: Path, bare: Path) -> None:
    """Store a checkpoint's linear layers in fp8 by blocks of 16 × 16, and put what they stand for into `bare`."""
    tensors, kept = load_file(folder / "model.safetensors"), {}
    for name, value in tensors.items():
        if "proj" not in name:
            kept[name] = value
            continue
        rows, columns = (-(-n // 16) for n in value.shape)
        scale = torch.rand(rows, columns) / 100 + 0.01
        whole = scale.repeat_interleave(16, 0).repeat_interleave(16, 1)[: value.shape[0], : value.shape[1]]
        kept[name] = (value.float() / whole).to(FP8)
        kept[name + "_scale_inv"] = scale
        tensors[name] = reference(kept[name], scale, (16, 16))
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(tensors, bare / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [16, 16],
        "activation_scheme": "dynamic",
    }
    (folder / "config.json").write_text(json.dumps(config))


def test_an_fp32_family_of_fp8_endpoints_keeps_the_whole_product(tmp_path: Path) -> None:
    """`dtype: float32` computes with the products themselves, not with their bf16."""
    for seed, name in enumerate(("instruct", "thinking")):
        write_side(tmp_path / name, "blocks", seed)
    pair = Pair(tmp_path / "instruct", tmp_path / "thinking")
    built = build(pair.recipe(0.5, dtype="float32", family=FAMILY), tmp_path / "out")
    stored = load_file(pair.instruct / "model.safetensors")
    exact = stored[NAME].double() * spread(stored[NAME + "_scale_inv"], stored[NAME].shape, (4, 6))
    assert same_bits(weights(built.folder(0))[NAME], exact.float())


def integers(t: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return t | {NAME: torch.ones(8, 12, dtype=torch.int8), NAME + "_scale": torch.ones(8, 1)}


INTEGERS = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8, "type": "int"}}}}
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no scale": (lambda t: {n: v for n, v in t.items() if "scale" not in n}, BLOCK, "fp8"),
    "a scale that does not fit": (lambda t: t | {NAME + "_scale_inv": torch.ones(7, 5)}, BLOCK, "fp8"),
    "int8": (integers, INTEGERS, "compressed-tensors"),
    "awq": (lambda t: t, {"quant_method": "awq"}, "awq"),
    "config alone": (lambda t: {n: v.bfloat16() for n, v in t.items() if "scale" not in n}, BLOCK, "fp8"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_other_quantisations_are_refused(tmp_path: Path, what: str) -> None:
    """What is not fp8 with its scales stays refused, with the way out."""
    change, config, method = REFUSED[what]
    for seed, name in enumerate(("instruct", "thinking")):
        write_side(tmp_path / name, "blocks", seed)
        tensors = {n: v for n, v in load_file(tmp_path / name / "model.safetensors").items() if "input" not in n}
        write_raw(tmp_path / name, change(tensors), {**CONFIG, "quantization_config": config})
    pair = Pair(tmp_path / "instruct", tmp_path / "thinking")
    with pytest.raises(CheckpointError, match=rf"is quantised \({method}\)") as caught:
        build(pair.recipe(0.5, family=FAMILY), tmp_path / "out")
    assert "start from the unquantised checkpoint" in (caught.value.hint or "")


def test_fp8_is_for_dami_build_alone(tmp_path: Path) -> None:
    """The finding names the tool, since mergekit would interpolate the numbers without their scales."""
    for seed, name in enumerate(("instruct", "thinking")):
        write_side(tmp_path / name, "blocks", seed)
    sides = [open_checkpoint(ModelRef(str(tmp_path / name))) for name in ("instruct", "thinking")]
    assert {f.tool for f in compare(*sides) if f.code == "fp8"} == {"dami build"}
