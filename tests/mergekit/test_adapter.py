"""The method through mergekit's planner in this process: many recipes at the price of one import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.pairs import Pair, make_pair

from dami_merge.interpolation.depth import Anatomy
from dami_merge.interpolation.formula import interpolate
from dami_merge.mergekit_adapter import METHOD, register, run_merge
from dami_merge.recipes.recipe import parse_recipe
from dami_router.errors import FailureError, MisuseError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Small pairs of several kinds."""
    root = tmp_path_factory.mktemp("pairs")
    return {
        "qwen3": make_pair(root / "a", "qwen3", layers=3),
        "llama": make_pair(root / "b", "llama", layers=5, tied=False),
        "one layer": make_pair(root / "c", "llama", layers=1, dtype=torch.float32),
    }


def merged(pair: Pair, recipe: str, folder: Path) -> dict[str, torch.Tensor]:
    run_merge(recipe, folder)
    return load_file(folder / "model.safetensors")


def ours(pair: Pair, recipe: str) -> dict[str, torch.Tensor]:
    instruct, thinking = (load_file(side / "model.safetensors") for side in pair)
    anatomy = Anatomy.of(instruct, json.loads((pair.instruct / "config.json").read_text()))
    read = parse_recipe(recipe)
    result = {}
    for name in instruct:
        a, b = instruct[name], thinking[name]
        if read.dtype:
            a, b = a.to(DTYPES[read.dtype]), b.to(DTYPES[read.dtype])
        tensor = interpolate(a, b, read.lambda_for(name, anatomy))
        result[name] = tensor.to(DTYPES[read.out_dtype]) if read.out_dtype else tensor
    return result


UNIT = st.floats(0.0, 1.0).map(lambda v: round(v, 3))
SCHEDULES = st.sampled_from(
    ["ramp(0, 1)", "ramp(0.9, 0.1)", "cosine(0.2, 0.7)", "sigmoid(0, 1)", "sigmoid(1, 0, center=0.3)"]
)
SCALARS = UNIT | SCHEDULES
SETTINGS = SCALARS | st.lists(UNIT, min_size=1, max_size=6) | st.lists(
    st.fixed_dictionaries(
        {"filter": st.sampled_from(["self_attn", "mlp", "norm", "layers.1", "embed", "lm_head"]), "value": SCALARS}
    ),
    max_size=3,
).flatmap(lambda options: SCALARS.map(lambda rest: [*options, {"value": rest}]))  # fmt: skip


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["qwen3", "llama", "one layer"]),
    setting=SETTINGS,
    dtype=st.none() | st.sampled_from(sorted(DTYPES)),
    out_dtype=st.none() | st.sampled_from(sorted(DTYPES)),
)
def test_mergekit_gives_our_bits(
    tmp_path_factory: pytest.TempPathFactory,
    pairs: dict[str, Pair],
    kind: str,
    setting: Any,
    dtype: str | None,
    out_dtype: str | None,
) -> None:
    """For any λ, dtype and architecture, mergekit writes exactly what our own reading of the recipe gives."""
    more = {k: v for k, v in (("dtype", dtype), ("out_dtype", out_dtype)) if v}
    recipe = pairs[kind].recipe(setting, **more)
    found = merged(pairs[kind], recipe, tmp_path_factory.mktemp("out"))
    wanted = ours(pairs[kind], recipe)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(("lambda_", "side"), [(0, 0), (1, 1)])
def test_the_ends_are_the_endpoints(tmp_path: Path, pairs: dict[str, Pair], lambda_: float, side: int) -> None:
    """λ=0 and λ=1 write the endpoints' own tensors, bit for bit."""
    pair = pairs["llama"]
    found = merged(pair, pair.recipe(lambda_), tmp_path / "out")
    for name, tensor in load_file(pair[side] / "model.safetensors").items():
        assert torch.equal(found[name], tensor), name


def sliced(pair: Pair, cuts: list[tuple[int, int]], lambdas: list[object]) -> str:
    return json.dumps(
        {
            "merge_method": "dami",
            "base_model": str(pair.instruct),
            "slices": [
                {
                    "sources": [{"model": str(side), "layer_range": list(cut)} for side in pair],
                    "parameters": {"lambda": lambda_},
                }
                for cut, lambda_ in zip(cuts, lambdas, strict=True)
            ],
        }
    )


def test_slices_have_their_own_lambda(tmp_path: Path, pairs: dict[str, Pair]) -> None:
    """Per-slice numbers, gradients and depth schedules agree with our own reading."""
    pair = pairs["llama"]
    recipe = sliced(pair, [(0, 2), (2, 5)], [[0, 0.5], "ramp(0, 1)"])
    found = merged(pair, recipe, tmp_path / "out")
    for name, tensor in ours(pair, recipe).items():
        assert torch.equal(found[name], tensor), name


def test_schedules_refuse_slices_that_drop_layers(tmp_path: Path, pairs: dict[str, Pair]) -> None:
    """mergekit stops with our message where slices change the layer count, and numbers still work there."""
    pair = pairs["llama"]
    with pytest.raises(MisuseError, match="needs all 5 layers of the endpoints; these keep 4"):
        run_merge(sliced(pair, [(0, 2), (3, 5)], [0.5, "ramp(0, 1)"]), tmp_path / "a")
    run_merge(sliced(pair, [(0, 2), (3, 5)], [0.5, [0, 1]]), tmp_path / "b")
    run_merge(pair.recipe("ramp(0, 1)"), tmp_path / "c")
    assert (tmp_path / "c" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("lambda_", "message"),
    [
        (1.2, "expected a number in [0, 1], found 1.2"),
        ("nan", "expected a finite number"),
        ("rmap(0, 1)", "did you mean `ramp(a, b)`"),
        ("window(0, 9)", "layer index from 0 to 4, found 9"),
        ("ramp(0, 2)", "lambda for"),
    ],
)
def test_bad_lambda_stops_a_merge(tmp_path: Path, pairs: dict[str, Pair], lambda_: object, message: str) -> None:
    """mergekit stops with our message, not with one about its own internals."""
    with pytest.raises(MisuseError) as caught:
        run_merge(pairs["llama"].recipe(lambda_), tmp_path / "out")
    assert message in str(caught.value)


def test_extrapolation_when_allowed(tmp_path: Path, pairs: dict[str, Pair]) -> None:
    """λ=1.25 goes beyond Thinking where the recipe allows it."""
    pair = pairs["llama"]
    recipe = json.loads(pair.recipe(1.25))
    recipe["parameters"]["allow_extrapolation"] = True
    found = merged(pair, json.dumps(recipe), tmp_path / "out")
    for name, tensor in ours(pair, json.dumps(recipe)).items():
        assert torch.equal(found[name], tensor), name


def test_wrong_number_of_models_is_explained(tmp_path: Path, pairs: dict[str, Pair]) -> None:
    """Without base_model, or with three models, planning stops with what a pair is."""
    recipe = json.loads(pairs["llama"].recipe(0.5))
    (tmp_path / "third").symlink_to(pairs["llama"].thinking)
    models = [{"model": str(m)} for m in (*pairs["llama"], tmp_path / "third")]
    for change in ({"base_model": None, "models": models[:2]}, {"models": models}):
        with pytest.raises(MisuseError, match="name the Instruct checkpoint as `base_model`"):
            run_merge(json.dumps({**recipe, **change}), tmp_path / "out")


def test_integer_buffers_must_agree() -> None:
    """Integer tensors are copied where both agree, and stop the merge where they do not."""
    from mergekit.merge_methods import merge_state_dicts

    a, b, c = ({"w": torch.full((4,), float(i)), "count": torch.tensor([n])} for i, n in ((0, 3), (1, 3), (2, 4)))
    found = merge_state_dicts([a, b], "dami", base=0, parameters={"lambda": 0.5})
    assert found["count"].tolist() == [3]
    assert found["w"].tolist() == [0.5] * 4
    with pytest.raises(ValueError, match="count"):
        merge_state_dicts([a, c], "dami", base=0, parameters={"lambda": 0.5})


def test_quantised_endpoints_are_refused(tmp_path: Path, pairs: dict[str, Pair]) -> None:
    """A quantization_config stops the merge even where mergekit could cast the bytes."""
    import shutil

    pair = Pair(pairs["llama"].instruct, tmp_path / "fp8")
    shutil.copytree(pairs["llama"].thinking, pair.thinking)
    config = json.loads((pair.thinking / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (pair.thinking / "config.json").write_text(json.dumps(config))
    with pytest.raises(FailureError, match="is quantised"):
        run_merge(pair.recipe(0.5), tmp_path / "out")


def test_registering_twice_is_harmless() -> None:
    """The hook and a command may both register: one method is there, the same object."""
    from mergekit import merge_methods

    register()
    register()
    assert merge_methods.get("dami") is METHOD
    assert sum(m.spec.name == "dami" for m in merge_methods.registered_methods()) == 1


def test_the_public_tensor_api_works() -> None:
    """mergekit's in-memory `merge_tensors` runs the method at a number."""
    from mergekit.merge_methods import merge_tensors

    a, b = torch.randn(4, 4), torch.randn(4, 4)
    result = merge_tensors([a, b], "dami", base_index=0, parameters={"lambda": 0.3})
    assert torch.equal(result, interpolate(a, b, 0.3))
