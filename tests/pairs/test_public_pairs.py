"""Every row of docs/pairs.md on a shrunk random pair: checked, built, verified, loaded, compared with fp64."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from support.builds import Built, build, same_bits
from support.pair_table import recipe_of
from support.pairs import Pair
from support.public_pairs import ROWS, PublicPair, dequantised, load_variant, write_public_pair

from dami_merge.live import Engine
from dami_merge.live.pair_model import PairModel
from dami_merge.verify import verify_family
from dami_router.commands.check import check
from dami_router.errors import CheckpointError

PAGE = Path(__file__).parents[2] / "docs" / "pairs.md"
LAMBDAS = (0, 0.4, 1)
REFUSED = {
    "int4": "quantised",
    "other": "architectures differ",
}
"""What cannot be interpolated, and a part of the message that says so."""


def usable() -> list[Any]:
    """Return the rows that `dami build` is for."""
    rows = [row for row in ROWS if not set(row.twists) & set(REFUSED)]
    return [pytest.param(row, id=row.id) for row in rows]


@dataclass(frozen=True)
class Case:
    """A shrunk pair, and the family that `dami build` made of it."""

    pair: Pair
    built: Built


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[PublicPair], Case]:
    """Make a row's pair and its family; rows of one shape share them."""
    made: dict[Any, Case] = {}

    def make(row: PublicPair) -> Case:
        if row.shape not in made:
            folder = tmp_path_factory.mktemp(row.id)
            pair = write_public_pair(row, folder)
            family = {"name": "Fam", "lambdas": list(LAMBDAS)}
            made[row.shape] = Case(pair, build(recipe_of(row, pair, family=family), folder / "out"))
        return made[row.shape]

    return make


def checked(recipe: Path) -> dict[str, Any]:
    """Return what `dami check --json` says of a recipe."""
    result = CliRunner().invoke(check, [str(recipe), "--json"], standalone_mode=False)
    assert result.exception is None, result.exception
    report: dict[str, Any] = json.loads(result.stdout)
    return report


@pytest.mark.parametrize("row", usable())
def test_check_names_dami_build_as_a_tool(
    row: PublicPair, case_of: Callable[[PublicPair], Case], tmp_path: Path
) -> None:
    """`dami check` calls each usable row ready, and `dami build` is among the tools that it names."""
    pair = case_of(row).pair
    (tmp_path / "recipe.yml").write_text(recipe_of(row, pair))
    report = checked(tmp_path / "recipe.yml")
    assert report["ok"], report["findings"]
    assert "dami build" in report["tools"]
    assert 0.01 < report["distance"]["sigma"] < 0.1


@pytest.mark.parametrize("row", usable())
def test_the_family_is_what_its_manifest_says(row: PublicPair, case_of: Callable[[PublicPair], Case]) -> None:
    """`dami verify --deep` finds nothing wrong with the family of each usable row."""
    assert verify_family(case_of(row).built.out, deep=True).all_problems == []


@pytest.mark.parametrize("row", usable())
def test_every_tensor_is_the_exact_interpolation(row: PublicPair, case_of: Callable[[PublicPair], Case]) -> None:
    """Endpoints come out bit for bit; between them every element is the fp64 value, rounded once."""
    case = case_of(row)
    ends = [dequantised(side) for side in case.pair]
    for side in ends:
        if row.has("untied"):
            side.setdefault("lm_head.weight", side["model.embed_tokens.weight"])
    instruct, thinking = ends
    for lambda_ in LAMBDAS:
        made = load_file(case.built.folder(lambda_) / "model.safetensors")
        assert made.keys() == instruct.keys()
        for name, tensor in made.items():
            end = thinking.get(name, instruct[name]) if lambda_ else instruct[name]
            if lambda_ in (0, 1):
                assert same_bits(tensor, end), (lambda_, name)
            elif tensor.is_floating_point():
                assert distance(tensor, instruct[name], end, lambda_) <= 1.0, name


def distance(found: torch.Tensor, instruct: torch.Tensor, thinking: torch.Tensor, lambda_: float) -> float:
    """Return the largest distance from the fp64 interpolation, as a fraction of what one rounding may add.

    That is half a unit in the last place of the exact value, and of fp32 for the endpoints' own values: where the
    two nearly cancel, the fp32 difference is all there is.
    """
    exact = (1 - lambda_) * instruct.double() + lambda_ * thinking.double()
    bits = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}[found.dtype]
    half = torch.ldexp(torch.full_like(exact, 0.5), torch.frexp(exact)[1] - bits)
    allowed = half + 2.0**-24 * (instruct.double().abs() + thinking.double().abs())
    return float(((found.double() - exact).abs() / allowed).max())


@pytest.mark.parametrize("row", [p for p in usable() if not p.values[0].kind.startswith("raw")])
def test_every_variant_loads_whole(row: PublicPair, case_of: Callable[[PublicPair], Case]) -> None:
    """Transformers loads each variant with no missing key; unexpected are only the layers that it never loads."""
    case = case_of(row)
    for lambda_ in LAMBDAS:
        _, missing, unexpected = load_variant(row, case.built.folder(lambda_))
        assert missing == set()
        assert {name for name in unexpected if not (row.has("mtp") and name.startswith("model.layers.3."))} == set()


def served_live() -> list[Any]:
    """Return a row of each shape that docs/pairs.md says is served live; test_pairs_page.py holds the page to it."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    names = {line.split(" | ")[0] for line in lines if line.endswith(("| yes |", "text only |"))}
    shapes = {row.shape: row for row in ROWS if f"| {row.instruct}, {row.thinking}" in names}
    return [pytest.param(row, id=row.id) for row in shapes.values()]


@pytest.mark.parametrize("row", served_live())
def test_a_live_engine_merges_the_bits_of_the_variant(row: PublicPair, case_of: Callable[[PublicPair], Case]) -> None:
    """At one λ the engine's weights are those of the built variant, for every shape that it serves."""
    case = case_of(row)
    engine = Engine.load(*map(str, case.pair), mode="uniform")
    engine.generate([[5, 6]], [0.4], max_new_tokens=1, ignore_eos=True)
    state, _, _ = load_variant(row, case.built.folder(0.4))
    assert isinstance(engine.model, PairModel)
    for pair in engine.model.pairs:
        assert pair.merged is not None
        assert same_bits(pair.merged, state[pair.name]), pair.name


@pytest.mark.parametrize("row", [row for row in ROWS if set(row.twists) & set(REFUSED)], ids=lambda row: row.id)
def test_what_cannot_be_interpolated_is_refused_for_its_reason(row: PublicPair, tmp_path: Path) -> None:
    """Rows with int4 weights alone or of two architectures are refused by check and build, which say why."""
    reason = next(REFUSED[twist] for twist in row.twists if twist in REFUSED)
    pair = write_public_pair(row, tmp_path)
    (tmp_path / "recipe.yml").write_text(pair.recipe(0.4, dtype="bfloat16"))
    report = checked(tmp_path / "recipe.yml")
    assert not report["ok"]
    assert any(reason in finding["message"] for finding in report["findings"])
    with pytest.raises(CheckpointError, match=reason):
        build(pair.recipe(0.4, dtype="bfloat16"), tmp_path / "out")
