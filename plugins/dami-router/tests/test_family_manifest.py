"""The family manifest by itself: written and read again, and what a stranger's one may not say."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dami_router.errors import CheckpointError, MisuseError
from dami_router.manifest.family import MANIFEST, MAX_MANIFEST_BYTES, json_schema, load_family, parse_family
from dami_router.manifest.published import open_family

SHA, COMMIT = "0123456789abcdef" * 4, "0123456789" * 4


def side(name: str) -> dict[str, Any]:
    """Return an endpoint."""
    return {
        "source": f"org/{name}", "commit": COMMIT, "architecture": "Qwen3ForCausalLM", "parameters": 0,
        "dtype": "BF16", "files": {"model.safetensors": SHA},
    }  # fmt: skip


def variant(number: int) -> dict[str, Any]:
    """Return a variant."""
    name = f"Fam-l{number:03d}"
    group = {"stack": "", "first": 0, "last": 3, "module": "mlp", "lambda": number / 100, "tensors": 1}
    return {
        "id": name, "lambda": number / 100, "resolved": [group], "folder": name, "files": {"config.json": SHA},
        "chat_template": {"source": "instruct", "sha256": None, "opens_think": False},
        "sampling": {"source": None, "values": {"temperature": 0.7, "top_k": 20, "do_sample": True, "x": None}},
        "hub": {"repo": "org/Fam-l000", "revision": COMMIT},
        "measured": [{"benchmark": "gsm8k", "accuracy": 1.0, "mean_tokens": 0.0, "n": 1}],
    }  # fmt: skip


def manifest(**changes: Any) -> dict[str, Any]:
    """Return a manifest that is right but for the changes."""
    return {
        "schema_version": 1, "name": "Fam", "created_with": {"tool": "dami-merge", "version": "0.1.0"},
        "endpoints": {"instruct": side("Instruct"), "thinking": side("Thinking")},
        "path": [{"filter": "mlp", "value": "late(1)"}, {"value": "uniform"}], "recipe": "merge_method: dami  # λ",
        "variants": [variant(0), variant(50)], **changes,
    }  # fmt: skip


def changed(*path: str | int, value: Any) -> dict[str, Any]:
    """Return a manifest with one value replaced, or added."""
    data = copy.deepcopy(manifest())
    at: Any = data
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    return data


def refusal(data: Any, where: str = "x/dami_family.json") -> CheckpointError:
    """Return why a manifest is refused."""
    with pytest.raises(CheckpointError) as caught:
        parse_family(data if isinstance(data, str | bytes) else json.dumps(data), where)
    return caught.value


def test_what_is_written_is_read_again() -> None:
    """Every field comes back, and the text depends on the content alone."""
    read = parse_family(json.dumps(manifest()))
    text = read.text()
    assert parse_family(text) == read
    assert parse_family(text.encode()).text() == text
    assert json.loads(text)["variants"][1]["lambda"] == 0.5
    assert json.loads(text)["path"][1] == {"filter": None, "value": "uniform"}


def test_the_text_is_for_people_and_for_diffs() -> None:
    """Indented JSON, letters beyond ASCII as they are, fields in the schema's order, one newline at the end."""
    text = parse_family(json.dumps(dict(reversed(manifest().items())))).text()
    assert text.startswith('{\n  "schema_version": 1,\n  "name": "Fam",\n')
    assert "# λ" in text
    assert text.endswith("\n}\n")


@pytest.mark.parametrize("value", ["left out", "carried"])
def test_custom_code_is_written_only_where_there_is_any(value: str) -> None:
    """A family without any has the manifest that it always had; one with it says what became of the code."""
    assert "custom_code" not in json.loads(parse_family(json.dumps(manifest())).text())
    text = parse_family(json.dumps(manifest(custom_code=value))).text()
    assert json.loads(text)["custom_code"] == value
    assert parse_family(text).text() == text
    assert refusal(manifest(custom_code="maybe")).message.startswith("x/dami_family.json: custom_code: ")


def test_a_number_that_is_none_is_never_written() -> None:
    """NaN cannot come in by reading, and does not go out by a copy that was made without checks."""
    family = parse_family(json.dumps(manifest()))
    broken = family.variants[0].model_copy(update={"lambda_": float("nan")})
    with pytest.raises(ValueError, match="JSON compliant"):
        family.model_copy(update={"variants": [broken]}).text()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("variants", 0, "lambda"), "NaN"), (("variants", 0, "resolved", 0, "lambda"), float("inf")),
        (("variants", 0, "folder"), ".."), (("variants", 0, "folder"), "a/b"), (("variants", 0, "folder"), ""),
        (("variants", 0, "folder"), ".hidden"), (("variants", 0, "folder"), "a" * 128), (("variants", 0, "id"), "_a"),
        (("variants", 0, "id"), "a\n"), (("variants", 0, "files", "a/b"), SHA), (("variants", 0, "files", ".x"), SHA),
        (("variants", 0, "files", "a" * 201), SHA), (("variants", 0, "files", "config.json"), SHA.upper()),
        (("variants", 0, "files", "config.json"), SHA + "0"), (("variants", 0, "hub", "repo"), "org"),
        (("variants", 0, "hub", "repo"), "../x"), (("variants", 0, "hub", "revision"), "main"),
        (("variants", 0, "measured", 0, "accuracy"), 1.01), (("variants", 0, "measured", 0, "accuracy"), -0.01),
        (("variants", 0, "measured", 0, "mean_tokens"), -1), (("variants", 0, "measured", 0, "n"), 0),
        (("variants", 0, "measured", 0, "benchmark"), ""), (("variants", 0, "resolved", 0, "first"), -1),
        (("variants", 0, "resolved", 0, "last"), -1), (("variants", 0, "resolved", 0, "tensors"), 0),
        (("variants", 0, "resolved", 0, "module"), ""), (("variants", 0, "resolved", 0, "stack"), "a" * 4097),
        (("variants", 0, "chat_template", "source"), "both"), (("variants", 0, "sampling", "source"), "both"),
        (("variants", 0, "sampling", "values"), {"a": "text"}), (("endpoints", "instruct", "parameters"), -1),
        (("endpoints", "instruct", "commit"), "0" * 39), (("endpoints", "thinking", "source"), ""),
        (("recipe",), "a" * ((1 << 20) + 1)), (("path",), ""), (("path",), [{"filter": "", "value": "uniform"}]),
        (("name",), "a b"), (("schema_version",), 0), (("created_with", "tool"), 3), (("surprise",), 1),
        (("variants", 0, "surprise"), 1), (("endpoints", "instruct", "surprise"), 1),
        (("variants",), [variant(0)] * 102),
    ],
    ids=lambda value: ".".join(map(str, value))[:40] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_a_manifest_may_not_say_is_refused_by_its_place(path: tuple[str | int, ...], value: Any) -> None:
    """The message names the file and the field, and asks whether this is a manifest at all."""
    error = refusal(changed(*path, value=value))
    place = ".".join(map(str, path))[:200]
    assert error.message.startswith(f"x/dami_family.json: {place}")
    assert "manifest" in (error.hint or "")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("variants", 0, "folder"), "a" * 127), (("variants", 0, "files", "_" + "a" * 199), SHA),
        (("variants", 0, "resolved", 0, "first"), None), (("variants", 0, "measured"), []),
        (("variants", 0, "hub"), None),
        (("recipe",), "a" * (1 << 20)), (("path",), "recipe"), (("endpoints", "instruct", "commit"), None),
        (("variants", 0, "lambda"), -0.25), (("variants", 0, "hub", "repo"), "O_r-g.x/_n.a-m_e"),
        (("variants", 0, "chat_template", "sha256"), SHA), (("variants", 0, "files"), {}),
    ],
)  # fmt: skip
def test_what_lies_just_within_the_limits_is_read(path: tuple[str | int, ...], value: Any) -> None:
    """The longest names, absent facts, λ outside [0, 1] of an extrapolated family."""
    assert parse_family(json.dumps(changed(*path, value=value)))


def test_the_longest_family_is_read() -> None:
    """101 variants: λ in steps of one hundredth."""
    assert len(parse_family(json.dumps(manifest(variants=[variant(i) for i in range(101)]))).variants) == 101


@pytest.mark.parametrize("what", ["id", "folder", "lambda"])
def test_two_variants_may_not_share_what_tells_them_apart(what: str) -> None:
    """Id, folder and λ are each unique, and the message says which is not."""
    data = changed("variants", 1, what, value=variant(0)[what])
    assert refusal(data).message.endswith(f"two variants have the same {what}")
    assert refusal(data).message.startswith("x/dami_family.json: the top: ")


@pytest.mark.parametrize("field", sorted(manifest()))
def test_no_field_of_the_family_may_be_missing(field: str) -> None:
    """The first missing one is named."""
    data = manifest()
    del data[field]
    assert refusal(data).message.startswith(f"x/dami_family.json: {field}: ")


@pytest.mark.parametrize("version", [2, 10])
def test_a_later_version_says_to_upgrade(version: int) -> None:
    """Whatever else a later manifest holds, the version is what is told."""
    error = refusal({"schema_version": version, "everything": "else"})
    assert error.message == f"x/dami_family.json: schema_version {version}; this version of dami reads 1"
    assert "upgrade" in (error.hint or "")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, b"\xff", "nonsense", '{"a": 1,}'])
def test_what_is_no_json_is_told_as_that(text: str | bytes) -> None:
    """Truncated, nested too deep, not UTF-8: not valid JSON, and how to get a new one."""
    error = refusal(text)
    assert error.message == "x/dami_family.json: not valid JSON"
    assert "build" in (error.hint or "")


@pytest.mark.parametrize("text", ["[]", "null", "3", '"text"', "[1]"])
def test_json_of_another_kind_is_no_manifest(text: str) -> None:
    """A list, a number, a text: the top is what is wrong."""
    assert refusal(text).message.startswith("x/dami_family.json: the top: ")


def test_long_names_do_not_fill_the_screen() -> None:
    """The place in a message is cut off at 200 characters; by default the file is called by its usual name."""
    error = refusal(changed("variants", 0, "files", "a/" + "b" * 5000, value=SHA))
    assert error.message.split(": ")[1] == ("variants.0.files.a/" + "b" * 5000)[:200]
    with pytest.raises(CheckpointError, match=rf"^{MANIFEST}: not valid JSON"):
        parse_family("{")


def test_a_family_is_found_in_its_folder_or_by_its_file(tmp_path: Path) -> None:
    """Both give the same; a file may have any name."""
    (tmp_path / MANIFEST).write_text(json.dumps(manifest()))
    (tmp_path / "other.json").write_text(json.dumps(manifest(name="Other")))
    assert load_family(tmp_path) == load_family(tmp_path / MANIFEST) == open_family(str(tmp_path))
    assert load_family(tmp_path / "other.json").name == "Other"


@pytest.mark.parametrize("place", [lambda folder: folder, lambda folder: folder / "none" / "x.json"])
def test_where_there_is_none_the_way_to_one_is_told(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    """The message names the file that was looked for, the hint the command that writes one."""
    with pytest.raises(MisuseError) as caught:
        load_family(place(tmp_path))
    expected = tmp_path / MANIFEST if place(tmp_path) == tmp_path else place(tmp_path)
    assert caught.value.message.startswith(f"{expected}: no such file")
    assert "dami build" in (caught.value.hint or "")


def test_a_manifest_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """A folder where the file should be: the system's reason, by the file's name."""
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(CheckpointError) as caught:
        load_family(tmp_path)
    assert caught.value.message == f"{tmp_path / MANIFEST}: cannot be read: Is a directory"


@pytest.mark.parametrize(("size", "says"), [(MAX_MANIFEST_BYTES, "not valid JSON"), (MAX_MANIFEST_BYTES + 1, "larger")])
def test_a_manifest_over_sixteen_mebibytes_is_not_read(tmp_path: Path, size: int, says: str) -> None:
    """Up to the limit it is read, beyond it is refused by its size."""
    path = tmp_path / MANIFEST
    path.touch()
    os.truncate(path, size)
    with pytest.raises(CheckpointError) as caught:
        load_family(tmp_path)
    assert caught.value.message.startswith(f"{path}: {says}")
    assert says != "larger" or " 16 MiB" in caught.value.message


def test_the_schema_is_that_of_the_file() -> None:
    """It speaks of `lambda`, as the file does, and of no field that the file has not."""
    schema = json_schema()
    assert set(schema["required"]) == set(manifest())
    assert set(schema["properties"]) == {*manifest(), "custom_code"}
    assert set(schema["$defs"]["Variant"]["properties"]) == set(variant(0))
    assert schema["additionalProperties"] is False
