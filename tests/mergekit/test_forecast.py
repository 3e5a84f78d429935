"""What `dami check` says that mergekit would do, against what mergekit does."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from support.builds import write_pair
from support.pairs import Pair
from support.public_pairs import ROWS, PublicPair, load_variant, write_public_pair

from dami_merge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.forecast.mergekit_forecast import forecast_mergekit
from dami_merge.forecast.mergekit_table import architecture_file, has_architecture
from dami_merge.mergekit_adapter import plan_tensors, run_merge
from dami_merge.recipes.recipe import parse_recipe
from dami_router.commands.check import check
from dami_router.errors import FailureError

SHAPES = list({row.shape: row for row in ROWS}.values())
LOSING = {"qwen3_next", "deepseek_v3", "ernie4_5_moe", "nemotron_h"}
FEW = [row for row in SHAPES if row.kind in LOSING | {"qwen3_moe", "olmo3"} and not {"fp8", "int4"} & set(row.twists)]


def opened(pair: Pair) -> tuple[Checkpoint, Checkpoint]:
    """Open both endpoints of a pair."""
    instruct, thinking = (open_checkpoint(ModelRef(str(side))) for side in pair)
    return instruct, thinking


def checked(folder: Path, recipe: str) -> dict[str, Any]:
    """Return what `dami check --json` says of a recipe."""
    (folder / "recipe.yml").write_text(recipe)
    result = CliRunner().invoke(check, [str(folder / "recipe.yml"), "--json"], standalone_mode=False)
    assert result.exception is None, result.exception
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def fused(name: str) -> str:
    """Name a stored tensor as mergekit writes it: experts joined, `backbone` renamed."""
    before, found, after = name.partition(".experts.")
    if found and after[:1].isdigit():
        part = after.split(".")[1]
        return f"{before}.experts.{'down_proj' if part == 'down_proj' else 'gate_up_proj'}"
    return name.replace("backbone.embeddings", "model.embeddings").replace("backbone.", "model.")


@pytest.mark.parametrize("row", FEW, ids=lambda row: row.id)
def test_what_is_said_to_be_dropped_is_what_mergekit_does_not_write(row: PublicPair, tmp_path: Path) -> None:
    """The tensors that the forecast says mergekit drops are absent from its output, and all others are there."""
    pair = write_public_pair(row, tmp_path)
    instruct, thinking = opened(pair)
    recipe = pair.recipe(0.4, dtype="bfloat16")
    forecast = forecast_mergekit(parse_recipe(recipe), instruct, thinking, lambda _: None)
    run_merge(recipe, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors").keys()
    dropped = {name for names in forecast.lost.values() for name in names}
    assert bool(dropped) == (row.kind in LOSING)
    names = {name for name in instruct.tensors if "e_score_correction" not in name}
    assert {fused(name) for name in dropped & names} & written == set()
    assert {fused(name) for name in names - dropped} <= written


@pytest.mark.slow
@pytest.mark.parametrize("row", SHAPES, ids=lambda row: row.id)
def test_every_pair_goes_through_mergekit_as_the_forecast_says(row: PublicPair, tmp_path: Path) -> None:
    """A pair that the forecast calls whole gives a model that loads with no missing key; others stop or lose."""
    pair = write_public_pair(row, tmp_path)
    recipe = pair.recipe(0.4, dtype="bfloat16")
    forecast = forecast_mergekit(parse_recipe(recipe), *opened(pair), lambda _: None)
    try:
        run_merge(recipe, tmp_path / "out")
    except Exception:
        assert forecast.failure is not None
        return
    _, missing, unexpected = load_variant(row, tmp_path / "out")
    if forecast.whole or forecast.tied:
        assert (missing, unexpected) == (set(), set())
    else:
        assert missing or set(forecast.lost) == {"multi-token prediction"}


def test_an_architecture_file_agrees_with_mergekits_plan(tmp_path: Path) -> None:
    """Wherever reading mergekit's file finds that it names every tensor, mergekit's own plan uses every tensor."""
    covered = set()
    for row in (row for row in SHAPES if not {"fp8", "fp8_instruct", "code", "other"} & set(row.twists)):
        instruct, thinking = opened(write_public_pair(row, tmp_path / row.id / "-".join(row.twists)))
        file = architecture_file(instruct.config["architectures"][0], instruct.config["model_type"])
        if file is not None and file.covers(instruct.config, frozenset(instruct.tensors)):
            covered.add(row.kind)
            plan = plan_tensors(instruct, thinking)
            assert (plan.failure, plan.used) == (None, frozenset(instruct.tensors)), row.id
    assert covered >= {"qwen2", "qwen3", "qwen3_moe", "qwen3_vl", "llama", "lfm2", "ministral3", "glm4", "phi3"}


def test_the_files_are_read_without_mergekit_or_torch() -> None:
    """Looking up an architecture imports neither, which is what keeps `dami check` quick."""
    code = (
        "import sys; from dami_merge.forecast.mergekit_table import architecture_file;"
        "assert architecture_file('Qwen3ForCausalLM', 'qwen3').name == 'qwen3.json';"
        "assert not {'torch', 'mergekit', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_architecture_without_a_file_is_named(tmp_path: Path) -> None:
    """Olmo-3 has no file in mergekit 0.1.5: check says so, and that the guess is complete."""
    row = next(row for row in ROWS if row.kind == "olmo3")
    pair = write_public_pair(row, tmp_path)
    assert not has_architecture("Olmo3ForCausalLM")
    (tmp_path / "recipe.yml").write_text(pair.recipe(0.4))
    result = CliRunner().invoke(check, [str(tmp_path / "recipe.yml")], standalone_mode=False)
    assert "47 of 47 tensors; no architecture file for Olmo3ForCausalLM" in result.stdout
    assert "ready to merge with dami build or mergekit-yaml" in result.stdout
    assert "asking mergekit for its plan" in result.stderr


def test_what_mergekit_would_drop_is_a_warning_and_dami_build_the_way_out(tmp_path: Path) -> None:
    """Experts and MTP layers that mergekit drops are counted by group, and only `dami build` is named as a tool."""
    row = next(row for row in ROWS if row.shape == ("deepseek_v3", ("mtp",)))
    report = checked(tmp_path, write_public_pair(row, tmp_path).recipe(0.4))
    assert (report["ok"], report["tools"]) == (True, ["dami build"])
    assert report["mergekit"]["dropped"] == {"experts": 24, "multi-token prediction": 9}
    (finding,) = [f for f in report["findings"] if f["code"] == "mergekit_drops"]
    assert "33 of 76 tensors" in finding["message"]
    assert "no architecture file for DeepseekV3ForCausalLM" in finding["message"]
    assert "dami build" in finding["hint"]


def test_a_head_under_a_config_that_ties_it_is_a_warning(tmp_path: Path) -> None:
    """With a tied Instruct and an untied Thinking, mergekit's output has a head that config.json denies."""
    row = next(row for row in ROWS if row.has("untied"))
    pair = write_public_pair(row, tmp_path)
    report = checked(tmp_path, pair.recipe(0.4))
    assert report["tools"] == ["dami build"]
    assert "mergekit_tied" in {f["code"] for f in report["findings"]}
    run_merge(pair.recipe(0.4), tmp_path / "out")
    assert "lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    turned = Pair(pair.thinking, pair.instruct)
    assert "mergekit-yaml" in checked(tmp_path, turned.recipe(0.4))["tools"]


def test_endpoints_on_the_hub_are_planned_from_headers(tmp_path: Path) -> None:
    """Endpoints without a local folder give the same plan: nothing but config and tensor names is used."""
    row = next(row for row in ROWS if row.kind == "ernie4_5_moe")
    instruct, thinking = opened(write_public_pair(row, tmp_path))
    remote = [replace(side, folder=None, ref=ModelRef("org/name")) for side in (instruct, thinking)]
    assert plan_tensors(*remote) == plan_tensors(instruct, thinking)


def test_many_experts_are_planned_as_the_first_two(tmp_path: Path) -> None:
    """A layer with 64 experts is planned in no more steps than one with two, and all 64 are counted as dropped."""
    row = next(row for row in ROWS if row.kind == "ernie4_5_moe")
    instruct, thinking = opened(write_public_pair(row, tmp_path))
    base = "model.layers.1.mlp.experts."
    more = {f"{base}{i}.up_proj.weight": instruct.tensors[f"{base}0.up_proj.weight"] for i in range(64)}
    plan = plan_tensors(*(replace(side, tensors={**side.tensors, **more}) for side in (instruct, thinking)))
    assert plan.failure is None
    assert not set(more) & plan.used


def test_a_pair_that_no_tool_can_merge_is_an_error(tmp_path: Path) -> None:
    """Slices that leave layers out are mergekit's alone; where mergekit would stop too, the recipe is not ready."""
    row = next(row for row in ROWS if row.kind == "qwen3_vl")
    pair = write_public_pair(row, tmp_path)
    whole = json.loads(pair.recipe(0.4))
    del whole["models"]
    sources = [{"model": str(side), "layer_range": [0, 1]} for side in pair]
    report = checked(tmp_path, json.dumps({**whole, "slices": [{"sources": sources}]}))
    assert not report["ok"]
    codes = {f["code"]: f["severity"] for f in report["findings"]}
    assert codes == {"build_refuses": "error", "mergekit_stops": "warning"}


def test_padded_embeddings_are_for_dami_build_alone(tmp_path: Path, qwen3: Pair) -> None:
    """Vocabulary matrices of different sizes stop mergekit, and check says so before a merge does."""
    longer = Pair(qwen3.instruct, tmp_path / "thinking")
    longer.thinking.mkdir()
    for file in qwen3.thinking.iterdir():
        (longer.thinking / file.name).write_bytes(file.read_bytes())
    tensors = load_file(qwen3.thinking / "model.safetensors")
    rows = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = torch.cat([rows, rows[:8]])
    save_file(tensors, longer.thinking / "model.safetensors", metadata={"format": "pt"})
    report = checked(tmp_path, longer.recipe(0.4))
    assert report["tools"] == ["dami build"]
    assert "[48, 32] in Instruct, [56, 32] in Thinking" in report["mergekit"]["failure"]
    with pytest.raises(ValueError, match="Tensor size mismatch"):
        run_merge(longer.recipe(0.4), tmp_path / "out")
    aligned = checked(tmp_path, longer.recipe(0.4, tokenizer_source="base"))
    assert aligned["tools"] == ["dami build", "mergekit-yaml"]


def test_fp8_without_a_quantization_config_is_not_merged_bare(tmp_path: Path) -> None:
    """The merge method refuses fp8 weights, also where no quantization_config gives them away."""
    tensors = {"model.embed_tokens.weight": torch.ones(8, 4), "model.norm.weight": torch.ones(4)}
    pair = write_pair(tmp_path, tensors, tensors, num_hidden_layers=0)
    for side in pair:
        eight = {n: t.to(torch.float8_e4m3fn) for n, t in tensors.items()}
        save_file(eight, side / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FailureError, match="F8_E4M3"):
        run_merge(pair.recipe(0.4, dtype="bfloat16"), tmp_path / "out")


@pytest.mark.parametrize("key", [{"tokenizer_source": "base"}, {"tokenizer": {"source": "base"}}])
def test_a_tokenizer_source_that_changes_the_rows_is_said(tmp_path: Path, qwen3: Pair, key: dict[str, Any]) -> None:
    """With `base`, mergekit writes one row for each token; check says how many, unless that changes nothing."""
    report = checked(tmp_path, qwen3.recipe(0.4, **key))
    assert not [f for f in report["findings"] if f["code"] == "vocabulary_rows"]
    padded = Pair(tmp_path / "instruct", tmp_path / "thinking")
    for old, new in zip(qwen3, padded, strict=True):
        new.mkdir()
        for file in old.iterdir():
            (new / file.name).write_bytes(file.read_bytes())
        tokenizer = json.loads((new / "tokenizer.json").read_text())
        tokenizer["model"]["vocab"].popitem()
        (new / "tokenizer.json").write_text(json.dumps(tokenizer))
    report = checked(tmp_path, padded.recipe(0.4, **key))
    (finding,) = [f for f in report["findings"] if f["code"] == "vocabulary_rows"]
    assert "47 rows" in finding["message"]
    assert "have 48" in finding["message"]
