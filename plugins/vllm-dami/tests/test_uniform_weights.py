"""The weights of a server at one λ are those of the built variant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.lab import copy_pair
from dami_router.errors import CheckpointError, MisuseError
from vllm_dami.pair_settings import PairSettings
from vllm_dami.uniform_weights import UniformWeights

RECIPE = """\
merge_method: dami
base_model: {folder}/instruct
models: [{{model: {folder}/thinking}}]
parameters: {{lambda: "ramp(0.2, 0.8)"}}
family:
  name: lab
  lambdas: [0.3]
  path: [{{filter: mlp, value: late(0.5)}}, {{value: uniform}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab pair."""
    found = tmp_path_factory.mktemp("lab")
    copy_pair(found)
    return found


def weights(folder: Path) -> UniformWeights:
    path = [{"filter": "mlp", "value": "late(0.5)"}, {"value": "uniform"}]
    settings = {"thinking": str(folder / "thinking"), "path": path, "lambda": "ramp(0.2, 0.8)"}
    found = PairSettings.of({"dami": settings})
    return UniformWeights(ModelRef(str(folder / "instruct")), found, torch.device("cpu"))


def test_bit_for_bit_what_dami_build_writes(folder: Path, tmp_path: Path) -> None:
    """Along a path with filters, in bf16: every tensor of the variant, and none besides."""
    (tmp_path / "recipe.yml").write_text(RECIPE.format(folder=folder))
    command = [Path(sys.executable).parent / "dami", "build", tmp_path / "recipe.yml", tmp_path / "out"]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    (variant,) = (tmp_path / "out").glob("*/model.safetensors")
    built = load_file(variant)
    made = dict(weights(folder).at(0.3))
    assert made.keys() == built.keys()
    assert all(torch.equal(made[name].view(torch.int16), tensor.view(torch.int16)) for name, tensor in built.items())


def test_the_ends_and_the_default(folder: Path) -> None:
    """λ = 0 and 1 are the endpoints themselves; without λ the recipe's schedule counts; others are refused."""
    for lambda_, side in ((0.0, "instruct"), (1.0, "thinking")):
        stored = load_file(folder / side / "model.safetensors")
        assert all(torch.equal(tensor, stored[name]) for name, tensor in weights(folder).at(lambda_))
    first = dict(weights(folder).at(None))["model.embed_tokens.weight"]
    assert torch.equal(first, dict(weights(folder).at(0.2))["model.embed_tokens.weight"])
    with pytest.raises(MisuseError, match=r"\[0, 1\]"):
        next(iter(weights(folder).at(1.5)))


def test_endpoints_that_store_other_tensors_are_refused(folder: Path, tmp_path: Path) -> None:
    """The message names the first tensor that differs and what to do instead."""
    from safetensors.torch import save_file

    (tmp_path / "lab").mkdir()
    copy_pair(tmp_path / "lab")
    file = tmp_path / "lab" / "thinking" / "model.safetensors"
    stored = load_file(file)
    save_file({name: tensor.float() for name, tensor in stored.items()}, file)
    with pytest.raises(CheckpointError, match=r"`.*` is BF16 .* and F32"):
        weights(tmp_path / "lab")
