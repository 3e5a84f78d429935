"""YAML that is read strictly: every value has its line, and what would pass silently elsewhere is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dami_router.errors import RecipeError
from dami_router.shared.strict_yaml import dotted, load, parse
from dami_router.shared.suggestions import did_you_mean, listed

TEXT = """\
# a comment
name: Fam
family:
  lambdas:
    - 0
    - 0.5
  path: {filter: a,
         value: b}
"""


def refusal(text: str) -> RecipeError:
    """Return why a text is refused."""
    with pytest.raises(RecipeError) as caught:
        parse(text, "f.yml")
    return caught.value


def test_every_value_knows_its_line() -> None:
    """Mappings, lists and values in them, however they are written."""
    found = parse(TEXT, "f.yml")
    assert found.data == {"name": "Fam", "family": {"lambdas": [0, 0.5], "path": {"filter": "a", "value": "b"}}}
    lines = {
        ("name",): 2, ("family",): 3, ("family", "lambdas"): 4, ("family", "lambdas", 0): 5,
        ("family", "lambdas", 1): 6, ("family", "path", "filter"): 7, ("family", "path", "value"): 8,
    }  # fmt: skip
    assert {place: found.lines[place] for place in lines} == lines
    assert (found.name, found.source) == ("f.yml", TEXT)


def test_an_error_names_file_line_and_key() -> None:
    """For a key that is missing, the line of the nearest thing around it that is there."""
    found = parse(TEXT, "f.yml")
    assert found.error(("family", "lambdas", 1), "bad").message == "f.yml:6: family.lambdas[1]: bad"
    assert found.error(("family", "absent", "deep"), "bad").message == "f.yml:3: family.absent.deep: bad"
    assert found.error(("nowhere",), "bad", hint="so").hint == "so"
    assert found.error((), "bad").message.endswith(": bad")


@pytest.mark.parametrize(
    ("place", "text"),
    [((), ""), (("a",), "a: "), (("a", "b"), "a.b: "), (("a", 2, "b"), "a[2].b: "), ((0, "a"), "[0].a: ")],
)  # fmt: skip
def test_places_are_written_as_people_say_them(place: tuple[str | int, ...], text: str) -> None:
    """Keys with dots between them, indexes in brackets, nothing for the top."""
    assert dotted(place) == text


@pytest.mark.parametrize(
    ("key", "hint"),
    [("nmae", "did you mean `name`"), ("quux", "name or value"), ("value: f(a, b)", "quotes")],
)
def test_an_unknown_key_is_refused_with_a_way_out(key: str, hint: str) -> None:
    """The nearest known key; else all of them; for a cut-off call, how to quote it."""
    found = parse("top: {filter: x, " + (key if ":" in key else f"{key}: 1") + "}", "f.yml")
    with pytest.raises(RecipeError) as caught:
        found.only_keys(("top",), found.data["top"], ["filter", "name", "value"] if "(" in key else ["filter", "name"])
    assert caught.value.message.startswith("f.yml:1: top.")
    assert (hint if hint != "name or value" else "filter or name") in (caught.value.hint or "")
    found.only_keys(("top",), {"name": 1}, iter(["name"]))


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: 1\nb: 2\na: 3", 3, "a: given twice"),
        ("x:\n  a: 1\n  a: 2", 3, "x.a: given twice"),
        ("a: [1,\n 2", 2, "not valid YAML"),
        ("a: 'x", 1, "not valid YAML"),
        ("\ta: 1", 1, "not valid YAML"),
        ("? [a, b]\n: 1", 1, "plain word"),
        ("a: !!python/object:os.system x", 1, "not valid YAML"),
        ("a: !custom x", 1, "not valid YAML"),
        ("a: 2026-99-99", 1, "a: "),
        ("a: " + "[" * 60 + "]" * 60, 1, "nested too deeply"),
    ],
)
def test_what_would_pass_silently_is_refused_with_its_line(text: str, line: int, says: str) -> None:
    """Doubled keys, broken syntax, tags, impossible dates, deep nesting: one message, with file and line."""
    message = refusal(text).message
    assert message.startswith(f"f.yml:{line}: ")
    assert says in message


@pytest.mark.parametrize("text", ["", "# nothing", "[1]", "3", "text", "a: 1\n---\nb: 2", "a: \x00", "[" * 5000])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    """Empty files, lists, bare values, several documents and control characters."""
    assert refusal(text).message.startswith("f.yml:")


def test_several_documents_say_so() -> None:
    """The hint knows where such files come from."""
    error = refusal("a: 1\n---\nb: 2")
    assert "several" in error.message
    assert "mergekit-multi" in (error.hint or "")


def test_an_alias_is_read_where_it_stands_or_refused() -> None:
    """A billion laughs never become a billion values."""
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(9)
    )
    try:
        found = parse(bomb, "f.yml")
    except RecipeError as error:
        assert error.message
    else:
        assert len(str(found.data)) < 100_000


def test_files_are_read_whole_or_refused_by_name(tmp_path: Path) -> None:
    """A missing file, a folder, bytes that are no text, a file that is too large: the message begins with the path."""
    path = tmp_path / "r.yml"
    path.write_text("a: λ", encoding="utf-8")
    assert load(path).data == {"a": "λ"}
    assert load(path).name == str(path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin").write_bytes(b"a: \xff")
    (tmp_path / "large").write_bytes(b"#" * ((1 << 20) + 1))
    (tmp_path / "limit").write_bytes(b"a: 1 " + b"#" * ((1 << 20) - 5))
    assert load(tmp_path / "limit").data == {"a": 1}
    for name, says in (("none", "no such file"), ("folder", "folder"), ("latin", "byte 3"), ("large", "1 MiB")):
        with pytest.raises(RecipeError) as caught:
            load(tmp_path / name)
        assert caught.value.message.startswith(f"{tmp_path / name}: ")
        assert says in caught.value.message


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("abc λ:#-", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abcλ", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abcλ", min_size=1, max_size=3), PLAIN, min_size=1, max_size=4), st.booleans())
def test_what_yaml_writes_is_read_as_it_was(data: dict[str, object], flow: bool) -> None:
    """Any plain data comes back, in block and in flow style, with a line for every key."""
    text = yaml.safe_dump(data, default_flow_style=flow, allow_unicode=True)
    found = parse(text)
    assert found.data == data
    assert all((key,) in found.lines for key in data)


@given(st.text("ab:{}[]#&*!|>-?%@`'\"\n\t ,", max_size=30))
def test_any_text_is_a_document_or_one_message(text: str) -> None:
    """No text fails in any other way."""
    try:
        assert isinstance(parse(text).data, dict)
    except RecipeError as error:
        assert error.message.startswith("<yaml>")


def test_the_nearest_known_word_is_suggested() -> None:
    """A typing mistake finds its word, another word finds none."""
    assert did_you_mean("retrys", iter(["timeouts", "retries"])) == "retries"
    assert did_you_mean("quux", ["timeouts", "retries"]) is None
    assert did_you_mean("a", []) is None


@pytest.mark.parametrize(("words", "text"), [(["a"], "a"), (["a", "b"], "a or b"), (iter("abc"), "a, b or c")])
def test_words_are_listed_as_in_a_sentence(words: list[str], text: str) -> None:
    """Commas, and `or` before the last."""
    assert listed(words) == text
