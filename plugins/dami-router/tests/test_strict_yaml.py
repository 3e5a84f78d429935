"""YAML with line numbers: what is refused, and the line that each error names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_router.errors import RecipeError
from dami_router.shared.strict_yaml import load, parse


def refusal(text: str) -> str:
    """Return the message with which a text is refused."""
    with pytest.raises(RecipeError) as caught:
        parse(text, "f.yml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "f.yml:3: a: given twice"),
        ("a:\n  b: {c: 1, c: 2}", "f.yml:2: a.b.c: given twice"),
        ("? [1]\n: 2", "f.yml:1: a key must be a plain word"),
        ("a: 1\nb: !strange 2", "f.yml:2: not valid YAML: could not determine a constructor for the tag '!strange'"),
        ("a: 1\nb: [1", "f.yml:2: not valid YAML"),
        ("a: 1\n---\nb: 2", "f.yml: several YAML documents in one file; expected one"),
        ("- 1", "f.yml: expected a mapping at the top, found list"),
        ("# nothing", "f.yml: empty; expected a YAML mapping"),
        ("a: " + "[" * 60 + "]" * 60, "f.yml:1: nested too deeply"),
        ("a:\n  b: " + "1" * 5000, "f.yml:2: a.b: Exceeds the limit"),
    ],
)
def test_a_mistake_names_its_line(text: str, message: str) -> None:
    """Each is one RecipeError with file and line, where a line can be named, and the key."""
    assert refusal(text).startswith(message)


def test_aliases_of_aliases_do_not_fill_the_memory() -> None:
    """A few hundred bytes can stand for billions of values; they are refused soon. A plain alias is fine."""
    assert parse("a: &x [1]\nb: *x").data == {"a": [1], "b": [1]}
    levels = [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 30)]
    said = refusal("\n".join(["a0: &a0 [1]", *levels]))
    assert "more than 200000 values" in said
    assert "aliases of aliases" in said


def test_a_place_that_is_not_there_has_the_line_around_it() -> None:
    """An error about a missing key names the mapping that lacks it; about the whole file, its first line."""
    document = parse("\na:\n  b: [1,\n    {c: 2}]", "f.yml")
    places = {(): 2, ("a",): 2, ("a", "b"): 3, ("a", "b", 1): 4, ("a", "b", 1, "d"): 4, ("x", "y"): 2}
    assert {place: document.line(place) for place in places} == places
    assert str(document.error(("a", "b", 1, "d"), "is missing")) == "f.yml:4: a.b[1].d: is missing"


def test_a_large_file_is_refused_unread(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file over 1 MiB is no configuration."""
    path = tmp_path_factory.mktemp("large") / "large.yml"
    path.write_text("a: 1\n" + "#" * (1 << 20))
    with pytest.raises(RecipeError, match="larger than 1 MiB"):
        load(path)


@given(st.text(st.sampled_from("ab:- \n[]{},&*!|>'\"#?%@0.x"), max_size=60))
def test_whatever_the_text_it_is_read_or_refused(text: str) -> None:
    """Any text gives a mapping or a RecipeError that begins with the file."""
    try:
        assert isinstance(parse(text, "f.yml").data, dict)
    except RecipeError as error:
        assert error.message.startswith("f.yml:")
