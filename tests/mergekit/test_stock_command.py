"""The method inside stock mergekit: its own executables, unmodified, in their own processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from support.pairs import Pair, make_pair

from dami_merge.interpolation.depth import Anatomy
from dami_merge.interpolation.formula import interpolate
from dami_merge.recipes.recipe import parse_recipe


def command(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one of mergekit's own executables."""
    program = Path(sys.executable).with_name(name)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False, env=env)


def expected(pair: Pair, recipe: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Compute a recipe's merge with our own reading of λ."""
    instruct, thinking = (load_file(side / "model.safetensors") for side in pair)
    config = json.loads((pair.instruct / "config.json").read_text())
    anatomy, read = Anatomy.of(instruct, config), parse_recipe(recipe)
    return {n: interpolate(instruct[n].to(dtype), thinking[n].to(dtype), read.lambda_for(n, anatomy)) for n in instruct}


def assert_same(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    found = load_file(folder / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_stock_mergekit_yaml_knows_the_method(tmp_path: Path, qwen3: Pair) -> None:
    """With nothing but the installation, `mergekit-yaml` merges, and its card names and links the method."""
    recipe = qwen3.recipe(
        [{"filter": "self_attn", "value": "ramp(0.1, 0.9)"}, {"filter": "lm_head", "value": 1}, {"value": [0, 0.3, 1]}],
        dtype="bfloat16",
        family={"name": "x", "lambdas": [0, 1]},
    )
    (tmp_path / "r.yml").write_text(recipe)
    done = command("mergekit-yaml", tmp_path / "r.yml", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same(tmp_path / "out", expected(qwen3, recipe))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "[DAMI](https://arxiv.org/abs/2601.21414)" in card
    assert f"using {qwen3.instruct} as a base" in card


def test_hook_off_means_method_off_and_dami_merge_still_works(tmp_path: Path, qwen3: Pair) -> None:
    """DAMI_NO_AUTOLOAD=1 leaves stock mergekit untouched; `dami merge` registers the method itself."""
    (tmp_path / "r.yml").write_text(qwen3.recipe(0.25))
    off = command("mergekit-yaml", tmp_path / "r.yml", tmp_path / "off", DAMI_NO_AUTOLOAD="1")
    assert off.returncode != 0
    assert "Unimplemented merge method dami" in off.stderr
    on = command("dami", "merge", tmp_path / "r.yml", tmp_path / "on", "--quiet", DAMI_NO_AUTOLOAD="1")
    assert on.returncode == 0, on.stderr[-2000:]
    assert_same(tmp_path / "on", expected(qwen3, qwen3.recipe(0.25)))
    again = command("dami", "merge", tmp_path / "r.yml", tmp_path / "on")
    assert again.returncode == 2
    assert "already exists, and is not overwritten" in again.stderr


def test_dami_merge_takes_what_only_mergekit_reads(tmp_path: Path, qwen3: Pair) -> None:
    """A recipe with `modules:` goes to mergekit, with a note that `dami check` does not read it."""
    recipe = json.loads(qwen3.recipe("ramp(0, 1)"))
    recipe["modules"] = {"default": {"models": recipe.pop("models")}}
    (tmp_path / "r.yml").write_text(json.dumps(recipe))
    done = command("dami", "merge", tmp_path / "r.yml", tmp_path / "out", "--quiet")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "only mergekit reads" in done.stderr
    assert_same(tmp_path / "out", expected(qwen3, qwen3.recipe("ramp(0, 1)")))
    checked = command("dami", "check", tmp_path / "r.yml")
    assert checked.returncode == 2
    assert "or merge it as it is with `mergekit-yaml` or `dami merge`" in checked.stderr


def test_without_mergekit_one_message_says_so(tmp_path: Path, qwen3: Pair) -> None:
    """`dami merge` and `dami demo` without mergekit exit 1 with what to install; check and explain still work."""
    (tmp_path / "r.yml").write_text(qwen3.recipe(0.5))
    start = "import sys; sys.modules['mergekit'] = None; from dami_router.cli import main; main({!r})"
    for arguments, code in (
        (["merge", "r.yml", "out"], 1),
        (["demo", "--out", "demo", "--queries", "10"], 1),
        (["check", "r.yml"], 0),
        (["explain", "r.yml"], 0),
    ):
        done = subprocess.run(
            [sys.executable, "-c", start.format(arguments)], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == code, done.stderr
        assert ("pip install 'mergekit" in done.stderr) == (code == 1)
        assert "Traceback" not in done.stderr


def test_a_failing_merge_leaves_nothing(tmp_path: Path, qwen3: Pair) -> None:
    """`dami merge` that fails in the middle exits 1 or 2 with one message, and OUT is not there."""
    (tmp_path / "r.yml").write_text(qwen3.recipe("window(0, 9)"))
    done = command("dami", "merge", tmp_path / "r.yml", tmp_path / "out", "--quiet")
    assert done.returncode == 2
    assert "layer index from 0 to 3, found 9" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.yml"]


def test_mergekit_multi_and_other_methods_are_unharmed(tmp_path: Path, qwen3: Pair) -> None:
    """`mergekit-multi` chains dami with linear: both give what they give alone."""
    first = {**json.loads(qwen3.recipe(0.5)), "name": "half"}
    second = {
        "merge_method": "linear",
        "models": [
            {"model": str(qwen3.instruct), "parameters": {"weight": 0.5}},
            {"model": str(qwen3.thinking), "parameters": {"weight": 0.5}},
        ],
        "dtype": "float32",
        "name": "mean",
    }
    final = json.loads(qwen3.recipe(0.75))
    final["models"] = [{"model": "half"}]
    (tmp_path / "multi.yml").write_text("\n---\n".join(json.dumps(doc) for doc in (first, second, final)))
    done = command(
        "mergekit-multi", tmp_path / "multi.yml",
        "--intermediate-dir", tmp_path / "steps", "--out-path", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    half = expected(qwen3, qwen3.recipe(0.5))
    assert_same(tmp_path / "steps" / "half", half)
    instruct, thinking = (load_file(side / "model.safetensors") for side in qwen3)
    assert_same(tmp_path / "out", {n: interpolate(instruct[n], half[n], 0.75) for n in instruct})
    linear = load_file(tmp_path / "steps" / "mean" / "model.safetensors")
    for name, tensor in linear.items():
        torch.testing.assert_close(tensor, 0.5 * instruct[name].float() + 0.5 * thinking[name].float())


def test_raw_pytorch_merges_work_at_a_number(tmp_path: Path) -> None:
    """`mergekit-pytorch`, whose inputs have no config, merges at a number and refuses a schedule clearly."""
    a, b = {"w": torch.randn(8, 8)}, {"w": torch.randn(8, 8)}
    torch.save(a, tmp_path / "a.bin")
    torch.save(b, tmp_path / "b.bin")
    for lambda_ in (0.25, "ramp(0, 1)"):
        recipe = {
            "merge_method": "dami",
            "base_model": str(tmp_path / "a.bin"),
            "models": [{"model": str(tmp_path / m)} for m in ("a.bin", "b.bin")],
            "parameters": {"lambda": lambda_},
        }
        (tmp_path / "r.yml").write_text(json.dumps(recipe))
        done = command("mergekit-pytorch", tmp_path / "r.yml", tmp_path / "out")
        if lambda_ == 0.25:
            assert done.returncode == 0, done.stderr[-2000:]
            merged = load_file(next((tmp_path / "out").glob("*.safetensors")))
            assert torch.equal(merged["w"], interpolate(a["w"], b["w"], 0.25))
        else:
            assert done.returncode != 0
            assert "a depth schedule needs the config.json" in done.stderr


def test_mergekit_fuses_experts_and_agrees_modulo_that(tmp_path: Path) -> None:
    """On a mixture of experts mergekit's output holds our values, with experts fused as it does."""
    pair = make_pair(tmp_path, "qwen3_moe", layers=2)
    recipe = pair.recipe("ramp(0.2, 0.8)", dtype="bfloat16")
    (tmp_path / "r.yml").write_text(recipe)
    done = command("mergekit-yaml", tmp_path / "r.yml", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-2000:]
    found = load_file(tmp_path / "out" / "model.safetensors")
    ours = expected(pair, recipe)
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts."
        if f"{prefix}down_proj" in ours:
            continue
        stacked = torch.stack([ours[f"{prefix}{e}.down_proj.weight"] for e in range(4)])
        assert torch.equal(found[f"{prefix}down_proj"], stacked)
        halves = [torch.cat([ours[f"{prefix}{e}.{m}_proj.weight"] for m in ("gate", "up")]) for e in range(4)]
        assert torch.equal(found[f"{prefix}gate_up_proj"], torch.stack(halves))
    for name in found:
        if "experts" not in name:
            assert torch.equal(found[name], ours[name]), name
