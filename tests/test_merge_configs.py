"""Every ready recipe against small endpoints of its architecture, with the true number of layers where they count."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support.zoo import random_model

from dami_merge.commands.build import build
from dami_merge.commands.explain import explain
from dami_merge.interpolation.depth import Anatomy
from dami_merge.interpolation.formula import interpolate
from dami_merge.lab import SHIPPED_ROLLOUTS
from dami_merge.recipes.recipe import Recipe, load_recipe, parse_recipe
from dami_router.commands.check import check
from dami_router.rollouts.records import Rollout, read_rollouts

FOLDER = Path(__file__).parent.parent / "merge_configs"
NAMES = [path.name for path in sorted(FOLDER.glob("*.yml"))]


@dataclass(frozen=True)
class Shape:
    """What a small endpoint keeps of the real one: class or kind of the zoo, layers (None: the zoo's), tied or not."""

    kind: str
    layers: int | None
    tied: bool


SHAPES = {
    "qwen3-4b": Shape("Qwen3", layers=36, tied=True),
    "qwen3-30b": Shape("Qwen3Moe", layers=48, tied=False),
    "qwen3-235b": Shape("Qwen3Moe", layers=94, tied=False),
    "qwen3-vl-4b": Shape("qwen3_vl", layers=None, tied=True),
    "olmo-3-7b": Shape("olmo3", layers=None, tied=False),
    "lfm2.5": Shape("lfm2", layers=None, tied=True),
    "ministral-3-3b": Shape("ministral3", layers=None, tied=True),
    "deepseek-r1-distill": Shape("qwen2", layers=None, tied=False),
    "lab": Shape("Qwen3", layers=4, tied=True),
}

SIZES: dict[str, int] = {
    "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 8,
    "vocab_size": 32,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 4, "num_experts": 2, "num_experts_per_tok": 1}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make both endpoints of every shape; returns the folder that holds `instruct` and `thinking`."""
    made = {}
    for name, shape in SHAPES.items():
        made[name] = tmp_path_factory.mktemp(name)
        for folder, value in (("instruct", 1.0), ("thinking", 1.25)):
            write_endpoint(made[name] / folder, shape, value)
    return made


def write_endpoint(folder: Path, shape: Shape, value: float) -> None:
    """Save a model whose every weight is `value`, in the layout that Transformers writes."""
    import transformers

    if shape.layers is None:
        model = random_model(shape.kind, tied=shape.tied)
    else:
        sizes = SIZES | (EXPERTS if shape.kind == "Qwen3Moe" else {})
        config = getattr(transformers, f"{shape.kind}Config")(
            num_hidden_layers=shape.layers, tie_word_embeddings=shape.tied, **sizes
        )
        model = getattr(transformers, f"{shape.kind}ForCausalLM")(config)
    for parameter in model.parameters():
        parameter.data.fill_(value)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}', encoding="utf-8")


def pair_of(pairs: dict[str, Path], name: str) -> Path:
    """Return the folder of the pair that a recipe is for."""
    return next(folder for key, folder in pairs.items() if name.startswith(key))


def localised(name: str, pair: Path, into: Path) -> Path:
    """Copy a ready recipe with its endpoints' names replaced by the small ones' folders."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    recipe = parse_recipe(text)
    for old, new in ((recipe.instruct, "instruct"), (recipe.thinking, "thinking")):
        text, count = re.subn(rf"model: {re.escape(str(old))}(?=\s)", f"model: {pair / new}", text)
        assert count == 1
    copy = into / name
    copy.write_text(text, encoding="utf-8")
    return copy


def planned(recipe: Path) -> dict[str, Any]:
    """Plan a recipe with mergekit itself; returns its task for every output tensor."""
    import yaml
    from mergekit.architecture import get_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache, SaveTensor
    from mergekit.merge import _model_out_config
    from mergekit.options import MergeOptions
    from mergekit.plan import MergePlanner

    from dami_merge.mergekit_adapter import register

    register()
    options = MergeOptions(quiet=True)
    config = MergeConfiguration.model_validate(yaml.safe_load(recipe.read_text(encoding="utf-8")))
    LoaderCache().setup(options)
    architecture = get_architecture_info(config, options)
    planner = MergePlanner(config, architecture, options, _model_out_config(config, architecture))
    tasks = planner.plan_to_disk(str(recipe.with_suffix(".out")))
    return {task.tensor_name: task.tensor_task for task in tasks if isinstance(task, SaveTensor)}


def lambda_in(task: Any) -> float:
    """Run mergekit's task on 0 (Instruct) and 1 (Thinking): the merge of these is λ itself."""
    ends = {model: torch.tensor([float(model != task.base_model)], dtype=torch.float64) for model in task.model_order}
    return float(task.execute(tensors=ends))


def anatomy_of(folder: Path) -> tuple[Anatomy, set[str]]:
    """Return how many layers an endpoint has, and its tensors' names."""
    from dami_merge.checkpoints.checkpoint import open_checkpoint
    from dami_merge.checkpoints.model_ref import ModelRef

    endpoint = open_checkpoint(ModelRef(str(folder)))
    return Anatomy.of(endpoint.tensors, endpoint.config), set(endpoint.tensors)


def test_there_is_a_recipe_of_each_kind() -> None:
    """Static, family, late-layer, mixture-of-experts and lab recipes are all here, so no test below is empty."""
    assert len(NAMES) >= 8
    assert {"lab.yml", "qwen3-4b-2507-family.yml", "qwen3-4b-2507-late.yml", "qwen3-30b-a3b-2507.yml"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_check_finds_nothing_to_complain_about(name: str, pairs: dict[str, Path], tmp_path: Path) -> None:
    """`dami check` calls each ready recipe ready, without a single warning."""
    recipe = localised(name, pair_of(pairs, name), tmp_path)
    result = CliRunner().invoke(check, [str(recipe), "--json"], standalone_mode=False)
    report = json.loads(result.stdout)
    assert (result.return_value, report["ok"], report["findings"]) == (0, True, [])


@pytest.mark.parametrize("name", NAMES)
def test_mergekit_gives_every_tensor_the_lambda_that_we_say(name: str, pairs: dict[str, Path], tmp_path: Path) -> None:
    """mergekit's own plan of each ready recipe covers the whole model and merges each tensor at our λ."""
    pair = pair_of(pairs, name)
    path = localised(name, pair, tmp_path)
    recipe, (anatomy, names) = load_recipe(path), anatomy_of(pair / "instruct")
    tasks = planned(path)
    assert {unfused(n) for n in tasks} == {unfused(n) for n in names}
    assert {n: lambda_in(task) for n, task in tasks.items()} == {n: recipe.lambda_for(n, anatomy) for n in tasks}


def unfused(name: str) -> str:
    """Name a tensor so that one expert's projection and mergekit's fused stack of all of them are the same."""
    before, found, _ = name.partition(".mlp.experts.")
    return (before + found).removeprefix("language_model.")


@pytest.mark.parametrize("name", [n for n in NAMES if "family" in n])
def test_families_hold_their_own_static_lambda(name: str, pairs: dict[str, Path], tmp_path: Path) -> None:
    """A family's static λ is one of its variants, and the family starts and ends at its endpoints."""
    recipe = load_recipe(FOLDER / name)
    assert recipe.family is not None
    assert recipe.family.lambdas[0] == 0.0
    assert recipe.family.lambdas[-1] == 1.0
    assert set(recipe.lambdas()) <= set(recipe.family.lambdas)
    path = localised(name, pair_of(pairs, name), tmp_path)
    for lambda_ in recipe.family.lambdas:
        result = CliRunner().invoke(explain, [str(path), "--lambda", f"{lambda_}", "--json"], standalone_mode=False)
        assert {group["lambda"] for group in json.loads(result.stdout)["groups"]} == {lambda_}


@pytest.mark.parametrize("name", NAMES)
def test_build_makes_the_variants_of_each_recipe(name: str, pairs: dict[str, Path], tmp_path: Path) -> None:
    """`dami build` accepts each ready recipe, and its variants hold every tensor of Instruct at their λ."""
    from safetensors.torch import load_file

    pair = pair_of(pairs, name)
    path = localised(name, pair, tmp_path)
    recipe, (anatomy, names) = load_recipe(path), anatomy_of(pair / "instruct")
    result = CliRunner().invoke(build, [str(path), str(tmp_path / "out"), "--json"], standalone_mode=False)
    assert result.exit_code == 0, result.exception
    ends = torch.tensor(1.0, dtype=torch.bfloat16), torch.tensor(1.25, dtype=torch.bfloat16)
    variants = sorted(folder for folder in (tmp_path / "out").glob("[!.]*/"))
    lambdas = recipe.family.lambdas if recipe.family else (None,)
    assert len(variants) == len(lambdas)
    for folder, lambda_ in zip(variants, lambdas, strict=True):
        weights = load_file(folder / "model.safetensors")
        expected = {
            n: interpolate(*ends, recipe.lambda_for(n, anatomy) if lambda_ is None else lambda_).item() for n in names
        }
        assert {n: set(w.unique().tolist()) for n, w in weights.items()} == {n: {v} for n, v in expected.items()}


def test_each_family_recipe_names_the_same_endpoints_as_its_static_one() -> None:
    """`X-family.yml` adds a `family:` block to `X.yml` and changes nothing else."""
    for name in (n for n in NAMES if n.endswith("-family.yml")):
        family, static = load_recipe(FOLDER / name), load_recipe(FOLDER / name.replace("-family", ""))
        assert merged_part(family) == merged_part(static)


def merged_part(recipe: Recipe) -> dict[str, Any]:
    """Return what mergekit reads of a recipe."""
    return {key: value for key, value in recipe.document.data.items() if key != "family"}


def test_the_late_recipe_holds_layers_12_to_35_alone(pairs: dict[str, Path], tmp_path: Path) -> None:
    """The late-layer recipe is λ=0.8 on layers 12 to 35 and the final norm, and Instruct bit for bit before them."""
    pair = pair_of(pairs, "qwen3-4b")
    path = localised("qwen3-4b-2507-late.yml", pair, tmp_path)
    recipe, (anatomy, names) = load_recipe(path), anatomy_of(pair / "instruct")
    for name in names:
        place = anatomy.place(name)
        late = place.index >= 12 if place.index is not None else name == "model.norm.weight"
        assert recipe.lambda_for(name, anatomy) == (0.8 if late else 0.0), name


@pytest.mark.parametrize(
    ("name", "held", "value"),
    [
        ("qwen3-4b-2507-ffn.yml", ("self_attn",), 0.8),
        ("qwen3-30b-a3b-2507-pinned.yml", ("embed_tokens", "lm_head"), 0.9),
        ("qwen3-vl-4b.yml", ("visual",), 0.8),
    ],
)
def test_a_part_held_at_instruct_is_that_part_alone(
    name: str, held: tuple[str, ...], value: float, pairs: dict[str, Path], tmp_path: Path
) -> None:
    """Recipes that hold a part at Instruct give its tensors λ = 0 and all others their λ; each part is there."""
    pair = pair_of(pairs, name)
    recipe, (anatomy, names) = load_recipe(localised(name, pair, tmp_path)), anatomy_of(pair / "instruct")
    values = {n: recipe.lambda_for(n, anatomy) for n in names}
    assert values == {n: 0.0 if any(part in n for part in held) else value for n in names}
    assert all(any(part in n for n in names) for part in held)


def test_lab_paths_cannot_be_taken_for_hub_ids() -> None:
    """The lab recipes write ./ before their folders, so that mergekit's card needs no network."""
    for name in ("lab.yml", "lab-family.yml"):
        recipe = load_recipe(FOLDER / name)
        assert (str(recipe.instruct), str(recipe.thinking)) == ("./lab/instruct", "./lab/thinking")


def test_the_lab_recipe_holds_what_it_says() -> None:
    """On the shipped rollouts, the lab recipe's λ is as accurate as Thinking for at most 60 % of its tokens."""
    (lambda_,) = load_recipe(FOLDER / "lab.yml").lambdas()
    rollouts = list(read_rollouts(SHIPPED_ROLLOUTS))
    (accuracy, tokens), (accuracy_1, tokens_1) = (means(rollouts, at) for at in (lambda_, 1.0))
    assert accuracy >= accuracy_1 - 0.005
    assert tokens <= 0.6 * tokens_1


def means(rollouts: list[Rollout], lambda_: object) -> tuple[float, float]:
    """Return mean accuracy and mean tokens of one λ."""
    found = [r for r in rollouts if r.lambda_ == lambda_]
    return sum(r.correct for r in found) / len(found), sum(r.tokens for r in found) / len(found)


def test_the_readme_lists_every_recipe() -> None:
    """merge_configs/README.md has a line on each recipe, and on no file that is not there."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(([\w.-]+\.yml)\)", text)) == set(NAMES)
