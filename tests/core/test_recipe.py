"""Reading recipes strictly, and resolving λ as mergekit does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.interpolation.depth import Anatomy
from dami_merge.interpolation.setting import Choice, Constant, Gradient
from dami_merge.recipes.recipe import load_recipe, parse_recipe
from dami_router.errors import MisuseError, RecipeError

HEAD = "merge_method: dami\nbase_model: org/I\nmodels:\n  - model: org/T\n"
NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{m}.weight" for i in range(12) for m in ("self_attn.q_proj", "mlp.up_proj")),
    "model.norm.weight",
    "lm_head.weight",
]
ANATOMY = Anatomy.of(NAMES)


def recipe(parameters: str = "{lambda: 0.5}", rest: str = "") -> str:
    return f"{HEAD}parameters: {parameters}\n{rest}"


def test_the_design_example_reads() -> None:
    """The documented recipe gives its endpoints, λ, dtype and family."""
    read = parse_recipe(
        "merge_method: dami\n"
        "base_model: Qwen/Qwen3-4B-Instruct-2507@abc\n"
        "models:\n  - model: Qwen/Qwen3-4B-Thinking-2507\n"
        "parameters:\n  lambda: 0.6\ndtype: bfloat16\n"
        "family:\n  name: Qwen3-4B-DAMI\n  lambdas: [1, 0, 0.2]\n  path: uniform\n  chat_template: from(0.5)\n"
    )
    assert read.instruct == ModelRef("Qwen/Qwen3-4B-Instruct-2507", "abc")
    assert str(read.instruct) == "Qwen/Qwen3-4B-Instruct-2507@abc"
    assert read.thinking == ModelRef("Qwen/Qwen3-4B-Thinking-2507")
    assert read.dtype == "bfloat16"
    assert read.family is not None
    assert read.family.lambdas == (0.0, 0.2, 1.0)
    assert read.family.thinking_template_from == 0.5


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (recipe("{lambd: 0.5}"), 5, "did you mean `lambda`?"),
        (recipe(rest="dtyp: bfloat16"), 6, "did you mean `dtype`?"),
        (recipe(rest="dtype: bf16"), 6, "expected one of bfloat16, float16"),
        (recipe(rest="family: {name: x, lambdas: [0], pth: uniform}"), 6, "did you mean `path`?"),
        (recipe(rest="family: {lambdas: [0]}"), 6, "lacks `name`"),
        (recipe(rest="family: {name: '../x', lambdas: [0]}"), 6, "a name that the Hub accepts"),
        (recipe(rest="family: {name: x}"), 6, "`lambdas` expects a list"),
        (recipe(rest="family: {name: x, lambdas: [0, 1.5]}"), 6, "expected a number in [0, 1], found 1.5"),
        (recipe(rest="family: {name: x, lambdas: [0, .nan]}"), 6, "found nan"),
        (recipe(rest="family: {name: x, lambdas: [0, 0.0]}"), 6, "given twice"),
        (recipe(rest="family: {name: x, lambdas: [0], path: lat(1)}"), 6, "did you mean `late(k)`?"),
        (recipe(rest="family: {name: x, lambdas: [0], chat_template: form(0.5)}"), 6, "instruct, thinking or from"),
        (recipe("{lambda: .inf}"), 5, "expected a finite number in [0, 1], found inf"),
        (recipe("{lambda: true}"), 5, "expected a number or a schedule"),
        (recipe("{lambda: []}"), 5, "an empty list"),
        (recipe("{lambda: ['ramp(0, 1)', 0.5]}"), 5, "a gradient list takes numbers only"),
        (recipe("{lambda: [{filter: a, valu: 1}]}"), 5, "did you mean `value`?"),
        (recipe("{lambda: [{filter: a}]}"), 5, "lacks `value`"),
        (recipe("{lambda: [{filter: a, value: [{filter: b, value: 1}]}]}"), 5, "cannot stand inside"),
        (recipe("{lambda: ramp(0, 1)}"), 5, "in quotes"),
        (recipe("{lambda: 0.5, allow_extrapolation: 1}"), 5, "expected true or false"),
        (recipe("{lambda: 0.5, allow_extrapolation: [true, false]}"), 5, "a list of values has no meaning"),
        (recipe("{}"), 5, "lacks `lambda`"),
        (recipe(rest="modules: {}"), 6, "or merge it as it is with `mergekit-yaml`"),
        (recipe(rest="lambda: 0.5\nlambda: 0.6"), 7, "given twice"),
        (recipe().replace("dami", "damy"), 1, "did you mean `dami`?"),
        (recipe().replace("dami", "slerp"), 1, "belong to `mergekit-yaml` alone"),
        (recipe().replace("org/I", "org/I+org/L"), 2, "LoRA"),
        (recipe().replace("org/T", "org/I"), 3, "both endpoints are `org/I`"),
        (recipe().replace("  - model: org/T", "  - model: org/T\n  - model: org/U"), 3, "found 2: org/T, org/U"),
        (recipe().replace("  - model: org/T", "  - model: org/T\n    parameters: {lambda: 1}"), 5, "move it to the"),
        (recipe().replace("base_model: org/I\n", ""), 1, "lacks `base_model`"),
        ("merge_method: dami\n\tx", 2, "not valid YAML"),
        (recipe(rest="dtype: !!python/object:os.system x"), 6, "not valid YAML"),
        (recipe() + "---\n" + recipe(), 0, "several YAML documents"),
        ("", 0, "empty"),
        ("[1]", 0, "expected a mapping"),
    ],
)
def test_a_wrong_recipe_names_line_and_way_out(text: str, line: int, message: str) -> None:
    """Each mistake is one RecipeError that names the file, the line and what was expected."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "recipe.yml").lambda_for(NAMES[1], ANATOMY)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"recipe.yml:{line}: " if line else "recipe.yml: ")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """A missing file, a folder, binary data and an oversized file each get their own message."""
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large.yml").write_bytes(b"#" * (2 << 20))
    for name, message in (
        ("no.yml", "no such file"),
        (".", "is a folder"),
        ("binary.yml", "not UTF-8"),
        ("large.yml", "1 MiB"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_recipe(tmp_path / name)


def test_filters_decide_in_order() -> None:
    """The first filter found in the tensor's name decides; one without filter takes the rest."""
    read = parse_recipe(
        HEAD
        + "parameters:\n  lambda:\n    - filter: self_attn\n      value: ramp(0, 1)\n"
        + "    - filter: layers.1.\n      value: 0.25\n    - value: 0.5\n"
    )
    assert read.lambda_for("model.layers.11.self_attn.q_proj.weight", ANATOMY) == 1.0
    assert read.lambda_for("model.layers.1.mlp.up_proj.weight", ANATOMY) == 0.25
    assert read.lambda_for("model.layers.11.mlp.up_proj.weight", ANATOMY) == 0.5
    assert read.lambda_for("lm_head.weight", ANATOMY) == 0.5


def test_a_tensor_that_no_filter_matches_is_named() -> None:
    """Without a catch-all, the first tensor left without λ is named with the way out."""
    read = parse_recipe(recipe("{lambda: [{filter: self_attn, value: 1}]}"))
    with pytest.raises(RecipeError, match=r"no λ for tensor `model\.norm\.weight`"):
        read.lambda_for("model.norm.weight", ANATOMY)


def test_extrapolation_is_asked_for() -> None:
    """λ outside [0, 1] is refused until the recipe allows it."""
    with pytest.raises(RecipeError, match="allow_extrapolation"):
        parse_recipe(recipe("{lambda: 1.2}")).lambda_for("lm_head.weight", ANATOMY)
    read = parse_recipe(recipe("{lambda: 1.2, allow_extrapolation: true}"))
    assert read.lambda_for("lm_head.weight", ANATOMY) == 1.2


SLICED = """merge_method: dami
base_model: A
slices:
  - sources:
      - {{model: A, layer_range: [0, {cut}]}}
      - {{model: B, layer_range: [0, {cut}]}}
    parameters: {{lambda: {first}}}
  - sources:
      - {{model: A, layer_range: [{cut}, {end}]}}
      - {{model: B, layer_range: [{cut}, {end}]}}
parameters: {{lambda: {second}}}
"""


def test_slices_have_their_own_lambda() -> None:
    """A slice's λ wins over the recipe's, and a gradient runs over its slice alone."""
    read = parse_recipe(SLICED.format(cut=5, end=12, first="[0, 1]", second=0.75))
    read.check_layers(ANATOMY)
    assert read.lambda_for("model.layers.2.mlp.up_proj.weight", ANATOMY) == 0.5
    assert read.lambda_for("model.layers.5.mlp.up_proj.weight", ANATOMY) == 0.75
    assert read.lambda_for("model.embed_tokens.weight", ANATOMY) == 0.0
    assert read.lambda_for("lm_head.weight", ANATOMY) == 0.75


def test_depth_schedules_need_all_layers() -> None:
    """A schedule over depth is refused where slices change the layer count; numbers are not."""
    short = parse_recipe(SLICED.format(cut=5, end=10, first="'ramp(0, 1)'", second=0.75))
    with pytest.raises(RecipeError, match="needs all 12 layers of the endpoints; these slices keep 10"):
        short.check_layers(ANATOMY)
    parse_recipe(SLICED.format(cut=5, end=10, first=0.2, second=0.75)).check_layers(ANATOMY)


VALUES = st.floats(0.0, 1.0) | st.sampled_from(["0.5", "1e-1"])


@given(
    raw=VALUES
    | st.lists(VALUES, min_size=1, max_size=14)
    | st.lists(
        st.fixed_dictionaries(
            {"value": VALUES | st.lists(VALUES, min_size=1, max_size=5)},
            optional={"filter": st.sampled_from(["*", "self_attn", "mlp", "layers.1", "lm_head", "nothing"])},
        ),
        min_size=1,
        max_size=4,
    ),
    name=st.sampled_from(NAMES),
)
def test_settings_resolve_as_in_mergekit(raw: object, name: str) -> None:
    """For any setting and tensor, our λ equals mergekit's own evaluation to the last bit."""
    from mergekit.config import InputModelDefinition, MergeConfiguration, evaluate_setting

    from dami_merge.interpolation.schedule import parse_lambda

    read = parse_recipe(recipe(json.dumps({"lambda": raw})))
    config = MergeConfiguration(
        merge_method="dami",
        models=[InputModelDefinition(model="x/y")],
        parameters={"lambda": raw},
    )
    place = ANATOMY.place(name)
    t = place.x if place.index is not None else 0
    expected = evaluate_setting(name, config.parameters["lambda"], t, validate=parse_lambda)
    if expected is None:
        with pytest.raises(RecipeError, match="no λ"):
            read.lambda_for(name, ANATOMY)
    else:
        assert read.lambda_for(name, ANATOMY) == expected


def test_settings_are_told_apart() -> None:
    """A number, a gradient and a filter list become three kinds of setting."""
    kinds = [
        type(parse_recipe(recipe(p)).parameters.lambda_)
        for p in ("{lambda: 0.5}", "{lambda: [0, 1]}", "{lambda: [{value: 1}]}")
    ]
    assert kinds == [Constant, Gradient, Choice]


@given(text=st.text(max_size=200))
def test_any_text_is_a_recipe_or_one_message(text: str) -> None:
    """No text makes the reader fail in any other way than with a MisuseError."""
    try:
        parse_recipe(text)
    except MisuseError as error:
        assert error.message


@given(
    data=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=12,
    ),
    key=st.sampled_from(["base_model", "models", "slices", "parameters", "dtype", "family", "merge_method"]),
)
def test_any_value_under_a_known_key_is_read_or_one_message(data: object, key: str) -> None:
    """No value at a known key makes the reader fail in any other way than with a MisuseError."""
    import yaml

    content = {
        "merge_method": "dami",
        "base_model": "A",
        "models": [{"model": "B"}],
        "parameters": {"lambda": 0.5},
    }
    if key == "slices":
        del content["models"]
    try:
        parse_recipe(yaml.safe_dump({**content, key: data}))
    except MisuseError as error:
        assert error.message
