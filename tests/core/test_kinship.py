"""The distance between two endpoints' weights, from a sample."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.pairs import Pair, make_pair
from support.public_pairs import ROWS, dequantised, write_public_pair

from dami_merge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from dami_merge.checkpoints.kinship import _numbers, weight_gap
from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.interpolation.module_kind import module_of


def opened(pair: Pair) -> tuple[Checkpoint, Checkpoint]:
    """Open both endpoints of a pair."""
    instruct, thinking = (open_checkpoint(ModelRef(str(side))) for side in pair)
    return instruct, thinking


def scaled(pair: Pair, factor: float, part: str = "") -> None:
    """Make Thinking's weights Instruct's times a factor where their names hold `part`, and equal elsewhere."""
    tensors = load_file(pair.instruct / "model.safetensors")
    made = {name: tensor * (factor if part in name else 1.0) for name, tensor in tensors.items()}
    save_file(made, pair.thinking / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_scaled_by_a_factor_have_the_distance_of_that_factor(tmp_path: Path, dtype: torch.dtype) -> None:
    """T = 1.5·I has σ = 0.5/2.5 in every module, whatever part of a tensor is sampled."""
    pair = make_pair(tmp_path, "llama", tied=False, dtype=dtype)
    scaled(pair, 1.5)
    gap = weight_gap(*opened(pair))
    assert gap is not None
    assert set(gap.modules) == {"attention", "embeddings", "head", "mlp", "norm"}
    assert [*gap.modules.values(), gap.sigma] == pytest.approx([0.2] * 6, rel=1e-6)


def test_modules_are_told_apart(tmp_path: Path) -> None:
    """Where only the feed-forward layers differ, the others have σ = 0, and the whole lies between."""
    pair = make_pair(tmp_path, "llama")
    scaled(pair, 2.0, "mlp")
    gap = weight_gap(*opened(pair))
    assert gap is not None
    assert gap.modules["mlp"] == pytest.approx(1 / 3)
    assert {name for name, value in gap.modules.items() if value == 0.0} == {"attention", "embeddings", "norm"}
    assert 0.0 < gap.sigma < gap.modules["mlp"]
    assert str(gap).startswith(f"σ ≈ {gap.sigma:.3f} (attention 0.000, embeddings 0.000, mlp 0.333")


def test_a_sample_of_a_large_tensor_is_near_the_whole(tmp_path: Path) -> None:
    """On tensors much larger than the sample, the estimate is within a few per cent of σ over all weights."""
    pair = make_pair(tmp_path, "llama", layers=1)
    generator = torch.Generator().manual_seed(3)
    ends = []
    for side in pair:
        tensors = load_file(side / "model.safetensors")
        base = torch.randn(2_000, 300, generator=torch.Generator().manual_seed(5))
        tensors["model.layers.0.mlp.up_proj.weight"] = base + 0.1 * torch.randn(base.shape, generator=generator)
        ends.append(tensors["model.layers.0.mlp.up_proj.weight"])
        save_file(tensors, side / "model.safetensors", metadata={"format": "pt"})
    gap = weight_gap(*opened(pair))
    whole = (ends[1] - ends[0]).abs().sum() / (ends[0].abs().sum() + ends[1].abs().sum())
    assert gap is not None
    assert gap.modules["mlp"] == pytest.approx(float(whole), rel=0.05)


def test_endpoints_on_the_hub_are_not_measured(tmp_path: Path) -> None:
    """Without both folders here nothing is read, and there is no distance."""
    instruct, thinking = opened(make_pair(tmp_path))
    assert weight_gap(instruct, replace(thinking, folder=None)) is None
    assert weight_gap(replace(instruct, folder=None), thinking) is None


@pytest.mark.parametrize("twist", ["fp8", "fp8_instruct"])
def test_fp8_weights_count_with_their_scales(tmp_path: Path, twist: str) -> None:
    """The distance of fp8 endpoints is that of the values they stand for, in blocks and with one scale a tensor."""
    row = next(row for row in ROWS if twist in row.twists)
    pair = write_public_pair(row, tmp_path)
    gap = weight_gap(*opened(pair))
    instruct, thinking = (dequantised(side) for side in pair)
    names = [name for name in instruct if module_of(name) == "mlp"]
    ours, theirs = (torch.cat([side[n].double().flatten() for n in names]) for side in (instruct, thinking))
    assert gap is not None
    assert gap.modules["mlp"] == pytest.approx(
        float((ours - theirs).abs().sum() / (ours.abs().sum() + theirs.abs().sum())), rel=0.03
    )


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu])
def test_every_fp8_byte_is_read_as_torch_reads_it(dtype: torch.dtype) -> None:
    """All 256 bytes of each 8-bit format have the value that torch gives them."""
    name = {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.float8_e8m0fnu: "F8_E8M0"}[dtype]
    expected = torch.arange(256, dtype=torch.uint8).view(dtype).float().double()
    found = torch.from_numpy(_numbers(bytes(range(256)), name))
    finite = torch.isfinite(expected)
    assert torch.equal(found[finite], expected[finite])
