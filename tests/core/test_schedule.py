"""Schedules and paths: their values, their laws, and what they refuse."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_merge.interpolation.depth import Place
from dami_merge.interpolation.path import PATHS, parse_path
from dami_merge.interpolation.schedule import SCHEDULES, check_lambda, parse_lambda
from dami_router.errors import MisuseError

UNIT = st.floats(0.0, 1.0)


def layer(index: int, layers: int) -> Place:
    return Place(index, layers, index / (layers - 1) if layers > 1 else 1.0)


def at(text: str, place: Place) -> float:
    schedule = parse_lambda(text)
    assert not isinstance(schedule, float)
    return schedule.lambda_at(place)


PLACES = st.integers(1, 60).flatmap(lambda n: st.integers(0, n - 1).map(lambda i: layer(i, n)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ramp(0.2, 0.8)", [0.2, 0.35, 0.5, 0.65, 0.8]),
        ("cosine(0, 1)", [0, 0.146447, 0.5, 0.853553, 1]),
        ("sigmoid(0, 1)", [0.006693, 0.075858, 0.5, 0.924142, 0.993307]),
        ("sigmoid(0, 1, center=0.25, width=0.05)", [0.006693, 0.5, 0.993307, 0.999955, 1.0]),
        ("step(0.1, 0.9, at=2)", [0.1, 0.1, 0.9, 0.9, 0.9]),
        ("window(1, 3, inside=0.8, outside=0)", [0, 0.8, 0.8, 0.8, 0]),
        ("window(1, 3)", [0, 0.8, 0.8, 0.8, 0]),
    ],
)
def test_values_on_five_layers(text: str, expected: list[float]) -> None:
    """Each schedule gives the documented value on each of five layers."""
    assert [at(text, layer(i, 5)) for i in range(5)] == pytest.approx(expected, abs=1e-6)


def test_embeddings_and_head_follow_the_ends() -> None:
    """Embeddings take the value of the first layer, the final norm and the head that of the last."""
    before, after = Place(None, 5, 0.0), Place(None, 5, 1.0)
    for text in ("ramp(0.2, 0.8)", "step(0.2, 0.8, at=2)", "window(0, 1)", "window(3, 4)", "cosine(0.2, 0.8)"):
        assert at(text, before) == at(text, layer(0, 5))
        assert at(text, after) == at(text, layer(4, 5))


@given(name=st.sampled_from(["ramp", "cosine", "sigmoid"]), a=UNIT, b=UNIT, place=PLACES)
def test_smooth_schedules_stay_between_their_ends(name: str, a: float, b: float, place: Place) -> None:
    """A ramp, cosine or sigmoid never leaves the interval between a and b."""
    value = at(f"{name}({a!r}, {b!r})", place)
    assert min(a, b) - 1e-12 <= value <= max(a, b) + 1e-12


@given(name=st.sampled_from(["ramp", "cosine", "sigmoid"]), n=st.integers(2, 60))
def test_smooth_schedules_rise_with_depth(name: str, n: int) -> None:
    """From a smaller a to a larger b, λ never falls from one layer to the next."""
    values = [at(f"{name}(0.1, 0.9)", layer(i, n)) for i in range(n)]
    assert values == sorted(values)


@given(path=st.sampled_from(["uniform", "late(0.5)", "late(3)", "early(0.5)", "power(2)", "power(0.5)"]), place=PLACES)
def test_every_path_begins_and_ends_at_the_endpoints(path: str, place: Place) -> None:
    """λ_l(0) is exactly 0 and λ_l(1) exactly 1, on every layer of every path."""
    made = parse_path(path)
    assert made.lambda_at(0.0, place) == 0.0
    assert made.lambda_at(1.0, place) == 1.0


@given(
    path=st.sampled_from(["late", "early", "power"]),
    k=st.floats(0.01, 10),
    a=UNIT,
    b=UNIT,
    place=PLACES,
)
def test_every_path_is_monotone_and_in_range(path: str, k: float, a: float, b: float, place: Place) -> None:
    """A larger family λ never gives a layer a smaller λ, and λ_l stays in [0, 1]."""
    made = parse_path(f"{path}({k!r})")
    low, high = (made.lambda_at(value, place) for value in sorted((a, b)))
    assert 0.0 <= low <= high + 1e-12
    assert high <= 1.0


def test_late_turns_the_output_side_first() -> None:
    """On late(1) at λ=½ the last layer is all Thinking while the first is still Instruct."""
    late = parse_path("late(1)")
    assert late.lambda_at(0.5, layer(9, 10)) == 1.0
    assert late.lambda_at(0.5, layer(0, 10)) == 0.0
    early = parse_path("early(1)")
    assert early.lambda_at(0.5, layer(0, 10)) == 1.0


@pytest.mark.parametrize("value", [0, 1, 0.25, "0.25", "1e-1", -0.5, 2])
def test_numbers_are_read_as_mergekit_reads_them(value: object) -> None:
    """Numbers pass whatever their range (which depends on allow_extrapolation), also as YAML text."""
    assert parse_lambda(value) == float(str(value))


@pytest.mark.parametrize("value", [True, None, [], {}, float("nan"), float("inf"), "nan", "-inf", "", "()"])
def test_what_is_no_lambda_is_refused(value: object) -> None:
    """NaN, infinities, booleans and shapes without meaning are refused with what was expected."""
    with pytest.raises(MisuseError, match="expected"):
        parse_lambda(value)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("rmap(0, 1)", "did you mean `ramp(a, b)`"),
        ("windows(0, 1)", "did you mean `window(first, last, inside=0.8, outside=0)`"),
        ("quux(0, 1)", "known: ramp(a, b)"),
        ("ramp(0)", "lacks b; expected ramp(a, b)"),
        ("ramp(0, 1, 2)", "too many arguments"),
        ("ramp(0, b=1, c=2)", "argument `c` unknown"),
        ("ramp(0, 1, a=2)", "argument `a` given twice"),
        ("ramp(0, x)", "expected numbers"),
        ("ramp(0, 1e999)", "expected numbers"),
        ("ramp(0, True)", "expected numbers"),
        ("ramp(0, __import__('os'))", "expected numbers"),
        ("window(5, 2)", "first ≤ last"),
        ("sigmoid(0, 1, width=0)", "width above 0"),
        ("ramp(0", "in quotes"),
    ],
)
def test_a_misspelt_schedule_says_how_to_write_it(text: str, advice: str) -> None:
    """The message for a wrong schedule carries the right form or the nearest name."""
    with pytest.raises(MisuseError) as caught:
        parse_lambda(text)
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("text", "what", "found"),
    [
        ("window(0, 5)", "window: `last`", "5"),
        ("window(-1, 2)", "window: `first`", "-1"),
        ("window(0.5, 2)", "window: `first`", "0.5"),
        ("step(0, 1, at=5)", "step: `at`", "5"),
        ("step(0, 1, at=1.5)", "step: `at`", "1.5"),
    ],
)
def test_layers_beyond_the_model_are_refused(text: str, what: str, found: str) -> None:
    """A layer index that the model does not have is refused with its name, the range there is, and the way out."""
    with pytest.raises(MisuseError) as caught:
        at(text, layer(2, 5))
    assert caught.value.message == f"{what}: expected a layer index from 0 to 4, found {found}"
    assert "5 layers" in (caught.value.hint or "")
    assert "filter" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text", ["window(0, 0)", "window(4, 4)", "window(2, 2)", "step(0, 1, at=0)", "step(0, 1, at=4)"]
)
def test_the_first_and_the_last_layer_are_layers(text: str) -> None:
    """A window of one layer, and a step at either end."""
    values = [at(text, layer(i, 5)) for i in range(5)]
    assert len(set(values)) == (1 if text == "step(0, 1, at=0)" else 2)


def test_a_steep_sigmoid_is_a_step() -> None:
    """However small the width, the curve is computed on both sides without an overflow."""
    values = [at("sigmoid(0.2, 0.8, center=0.5, width=0.0001)", layer(i, 5)) for i in range(5)]
    assert values == pytest.approx([0.2, 0.2, 0.5, 0.8, 0.8])


@given(text=st.text(max_size=40) | st.from_regex(r"[a-z]{1,8}\([0-9., a-z=-]{0,20}\)", fullmatch=True))
def test_any_text_is_a_schedule_or_one_message(text: str) -> None:
    """No text makes the parser fail in any other way than a MisuseError."""
    for parse in (parse_lambda, parse_path):
        try:
            parse(text)  # type: ignore[operator]
        except MisuseError as error:
            assert error.message


@given(name=st.sampled_from(sorted(SCHEDULES)))
def test_schedules_are_values(name: str) -> None:
    """Two schedules written alike are equal and hash alike, as mergekit's planner needs."""
    text = {"step": "step(0, 1, at=2)", "window": "window(0, 2)"}.get(name, f"{name}(0, 1)")
    assert parse_lambda(text) == parse_lambda(text)
    assert hash(parse_lambda(text)) == hash(parse_lambda(text))
    assert PATHS


@given(value=st.floats())
def test_lambda_range(value: float) -> None:
    """Only finite values in [0, 1] pass; with extrapolation, every finite one."""
    inside = 0.0 <= value <= 1.0
    for allowed in (False, True):
        if inside or (allowed and math.isfinite(value)):
            assert check_lambda(value, allow_extrapolation=allowed) == value
        else:
            with pytest.raises(MisuseError, match=r"^here: expected"):
                check_lambda(value, allow_extrapolation=allowed, where="here")


def test_both_ends_of_the_range_are_in_it_and_the_way_out_is_told() -> None:
    """0 and 1 pass; just beyond them the message shows the number, and the hint how to allow it."""
    assert (check_lambda(0.0), check_lambda(1.0)) == (0.0, 1.0)
    for value in (-0.001, 1.001):
        with pytest.raises(MisuseError) as caught:
            check_lambda(value)
        assert caught.value.message == f"lambda: expected a number in [0, 1], found {value:g}"
        assert "allow_extrapolation: true" in (caught.value.hint or "")


@pytest.mark.parametrize("value", ["nan", "rmap(0, 1)", None])
def test_messages_begin_with_the_place(value: object) -> None:
    """The recipe's own place where it is known, else the word `lambda`."""
    for where in ("lambda", "recipe.yml:7"):
        with pytest.raises(MisuseError) as caught:
            parse_lambda(value) if where == "lambda" else parse_lambda(value, where=where)
        assert caught.value.message.startswith(f"{where}: ")
