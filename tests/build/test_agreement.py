"""Bit for bit the same weights as mergekit, whatever the architecture, λ, dtype and sharding."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builds import build, reshard, same_bits, weights
from support.pairs import Pair, make_pair

from dami_merge.build.build_plan import make_plan
from dami_merge.checkpoints.checkpoint import open_checkpoint
from dami_merge.mergekit_adapter import run_merge
from dami_merge.recipes.recipe import parse_recipe
from dami_router.errors import MisuseError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

UNIT = st.floats(0.0, 1.0).map(lambda v: round(v, 3))
SCHEDULES = st.sampled_from(
    ["ramp(0, 1)", "cosine(0.9, 0.2)", "sigmoid(0, 1, center=0.4)", "step(0.1, 0.8, at=1)", "window(0, 1, inside=0.7)"]
)
SCALARS = UNIT | SCHEDULES
GRADIENTS = st.lists(UNIT, min_size=2, max_size=4)
FILTERS = st.lists(
    st.fixed_dictionaries(
        {
            "filter": st.sampled_from(["self_attn", "mlp", "embed_tokens", "layers.0.", "norm"]),
            "value": SCALARS | GRADIENTS,
        }
    ),
    max_size=3,
).flatmap(lambda options: SCALARS.map(lambda last: [*options, {"value": last}]))
PATHS = st.sampled_from(["uniform", "late(0.5)", "early(0.5)", "late(2)", "power(2)"])
FAMILY_PATHS = PATHS | PATHS.map(lambda p: [{"filter": "self_attn", "value": p}, {"value": "uniform"}])


def fused(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Join experts as mergekit writes them: experts.gate_up_proj and experts.down_proj."""
    made = {n: t for n, t in tensors.items() if ".experts." not in n}
    layers = {m[1] for n in tensors if (m := re.match(r"(.*\.experts)\.\d+\.", n))}
    for layer in layers:
        count = 1 + max(int(m[1]) for n in tensors if (m := re.match(re.escape(layer) + r"\.(\d+)\.", n)))
        part = [{p: tensors[f"{layer}.{e}.{p}_proj.weight"] for p in ("gate", "up", "down")} for e in range(count)]
        made[f"{layer}.gate_up_proj"] = torch.stack([torch.cat([p["gate"], p["up"]]) for p in part])
        made[f"{layer}.down_proj"] = torch.stack([p["down"] for p in part])
    return made


def check_agreement(ours: Path, theirs: Path) -> None:
    """Assert that a variant and a mergekit merge hold the same tensors, bit for bit."""
    mine, expected = fused(weights(ours)), weights(theirs)
    assert set(mine) - {"lm_head.weight"} == set(expected) - {"lm_head.weight"}
    different = [name for name in expected if not same_bits(mine[name], expected[name])]
    assert different == []


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Pairs of three architectures, tied and untied, in several dtypes and shardings."""
    root = tmp_path_factory.mktemp("models")
    made = {
        "qwen3": make_pair(root / "a", "qwen3", layers=3),
        "llama": make_pair(root / "b", "llama", layers=2, tied=False, dtype=torch.float16),
        "qwen3_moe": make_pair(root / "c", "qwen3_moe", layers=2),
        "fp32": make_pair(root / "d", "llama", layers=3, dtype=torch.float32),
        "mixed": make_pair(root / "e", "qwen3", layers=2, tied=False),
    }
    other = make_pair(root / "f", "qwen3", layers=2, tied=False, dtype=torch.float16)
    made["mixed"] = Pair(made["mixed"].instruct, other.thinking)
    reshard(made["llama"].instruct, 3)
    reshard(made["llama"].thinking, 2)
    reshard(made["qwen3_moe"].thinking, 3)
    return made


@settings(max_examples=30)
@given(
    kind=st.sampled_from(["qwen3", "llama", "qwen3_moe", "fp32", "mixed"]),
    lambda_=SCALARS | GRADIENTS | FILTERS,
    dtype=st.none() | st.sampled_from(list(DTYPES)),
    out_dtype=st.none() | st.sampled_from(list(DTYPES)),
    limit=st.none() | st.integers(2_000, 60_000),
)
def test_recipe_gives_mergekits_bits(
    models: dict[str, Pair], kind: str, lambda_: Any, dtype: str | None, out_dtype: str | None, limit: int | None
) -> None:
    """Every recipe that both tools accept gives the same tensors: schedules, gradients, filters, dtypes, shards."""
    keys = {"dtype": dtype, "out_dtype": out_dtype}
    recipe = models[kind].recipe(lambda_, **{key: value for key, value in keys.items() if value})
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        built = build(recipe, root / "ours", max_shard_size=limit)
        run_merge(recipe, root / "theirs")
        check_agreement(root / "ours" / built.report.manifest.variants[0].folder, root / "theirs")


@settings(max_examples=12)
@given(kind=st.sampled_from(["qwen3", "llama", "mixed"]), path=FAMILY_PATHS, lambda_=UNIT)
def test_family_gives_mergekits_bits_of_the_written_out_recipe(
    models: dict[str, Pair], kind: str, path: Any, lambda_: float
) -> None:
    """A variant along a path equals mergekit's merge of the same λ written out tensor by tensor."""
    pair = models[kind]
    family = {"name": "Fam", "lambdas": sorted({0.0, lambda_, 1.0}), "path": path}
    recipe = pair.recipe(0.5, dtype="bfloat16", family=family)
    plan = make_plan(parse_recipe(recipe), *(open_checkpoint(r) for r in _refs(recipe)))
    variant = next(v for v in plan.variants if v.lambda_ == lambda_)
    explicit = [{"filter": name, "value": value} for name, value in variant.tensors.items()]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        build(recipe, root / "ours", only=(lambda_,))
        run_merge(pair.recipe(explicit, dtype="bfloat16"), root / "theirs")
        check_agreement(root / "ours" / variant.id, root / "theirs")


def _refs(recipe: str) -> tuple[Any, Any]:
    read = parse_recipe(recipe)
    return read.instruct, read.thinking


def test_uniform_variant_is_what_stock_mergekit_yaml_writes(models: dict[str, Pair], tmp_path: Path) -> None:
    """The variant at λ=0.4 of a uniform family is the merge of the stock command with `lambda: 0.4`, bit for bit."""
    pair = models["qwen3"]
    built = build(pair.recipe(0.5, family={"name": "Fam", "lambdas": [0.4, 1]}), tmp_path / "ours")
    (tmp_path / "recipe.yml").write_text(pair.recipe(0.4))
    command = Path(sys.executable).with_name("mergekit-yaml")
    done = subprocess.run(
        [command, tmp_path / "recipe.yml", tmp_path / "theirs", "--quiet"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    check_agreement(built.folder(0.4), tmp_path / "theirs")


def test_slices_that_keep_the_layers_agree(models: dict[str, Pair], tmp_path: Path) -> None:
    """A recipe in slices with λ of their own is built as mergekit merges it; slices that move layers are refused."""
    pair = models["qwen3"]

    def sliced(*ranges: tuple[int, int], shift: int = 0) -> str:
        document = json.loads(pair.recipe(0.5, dtype="bfloat16"))
        del document["models"]
        document["slices"] = [
            {
                "sources": [
                    {"model": str(pair.instruct), "layer_range": [a, b]},
                    {"model": str(pair.thinking), "layer_range": [a + shift, b + shift]},
                ],
                "parameters": {"lambda": [0.2, 0.9] if a else 0.3},
            }
            for a, b in ranges
        ]
        return json.dumps(document)

    recipe = sliced((0, 1), (1, 3))
    built = build(recipe, tmp_path / "ours")
    run_merge(recipe, tmp_path / "theirs")
    check_agreement(tmp_path / "ours" / built.report.manifest.variants[0].folder, tmp_path / "theirs")
    for bad in (sliced((0, 2)), sliced((1, 3), (0, 1)), sliced((0, 2), (1, 3)), sliced((0, 2), shift=1)):
        with pytest.raises(MisuseError, match="keeps all 3 layers"):
            build(bad, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_filters_that_tell_experts_apart_are_refused(models: dict[str, Pair], tmp_path: Path) -> None:
    """mergekit joins experts before it looks at filters, so a filter on one expert would mean two things."""
    recipe = models["qwen3_moe"].recipe([{"filter": "gate_proj", "value": 0.2}, {"value": 0.7}])
    with pytest.raises(MisuseError, match="mergekit joins experts"):
        build(recipe, tmp_path / "out")
