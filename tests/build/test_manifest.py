"""The manifest as strangers give it, and its published schema."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builds import Built

from dami_router.errors import CheckpointError
from dami_router.manifest.family import MANIFEST, json_schema, load_family, parse_family

SCHEMA = Path(__file__).parents[2] / "docs" / "family.schema.json"


def spoilt(family: Built, *path: str | int, value: Any) -> str:
    data = json.loads((family.out / MANIFEST).read_text())
    at = data
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("surprise",), 1, "surprise: Extra inputs"),
        (("variants", 0, "folder"), "../../etc", "variants.0.folder"),
        (("variants", 0, "folder"), "/etc", "variants.0.folder"),
        (("variants", 0, "folder"), "a/b", "variants.0.folder"),
        (("variants", 0, "folder"), ".dami_build", "variants.0.folder"),
        (("variants", 0, "files", "../evil"), "0" * 64, "variants.0.files"),
        (("variants", 0, "files", "a\n"), "0" * 64, "variants.0.files"),
        (("variants", 0, "files", "config.json"), "0" * 63, "variants.0.files.config.json"),
        (("variants", 0, "lambda"), float("nan"), "variants.0.lambda"),
        (("variants", 1, "id"), "Fam-l000", "two variants have the same id"),
        (("variants", 1, "lambda"), 0.0, "two variants have the same lambda"),
        (("schema_version",), 2, "schema_version 2; this version of dami reads 1"),
        (("schema_version",), "1", "schema_version"),
        (("endpoints", "instruct", "commit"), "main", "endpoints.instruct.commit"),
        (("variants",), [], None),
    ],
)
def test_untrusted_manifest(family: Built, path: tuple[str | int, ...], value: Any, message: str | None) -> None:
    """Unknown fields, paths that leave the folder, NaN and doubles are refused, and the field is named."""
    text = spoilt(family, *path, value=value)
    if message is None:
        assert parse_family(text).variants == []
        return
    with pytest.raises(CheckpointError) as caught:
        parse_family(text)
    assert message in caught.value.message


@given(text=st.text(max_size=40) | st.binary(max_size=40))
def test_any_text_is_refused_in_one_way(text: str | bytes) -> None:
    """Whatever the file holds, the answer is a CheckpointError, never another exception."""
    with pytest.raises(CheckpointError):
        parse_family(text)


@pytest.mark.parametrize("text", ["[" * 100_000, "1", "null", "{}", '{"schema_version": 1}'])
def test_json_that_is_no_manifest(text: str) -> None:
    """Deep nesting and other JSON are refused in the same way."""
    with pytest.raises(CheckpointError):
        parse_family(text)


def test_oversized_manifest(tmp_path: Path) -> None:
    """A manifest of many megabytes is not even read."""
    with (tmp_path / MANIFEST).open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(CheckpointError, match="larger than 16 MiB"):
        load_family(tmp_path)


def test_text_is_stable(family: Built) -> None:
    """Reading a manifest and writing it again gives the same bytes."""
    text = (family.out / MANIFEST).read_text()
    assert parse_family(text).text() == text


def test_published_schema_is_not_stale(family: Built) -> None:
    """docs/family.schema.json is what the models give (`make docs` writes it), and a real manifest has its fields."""
    schema = json.loads(SCHEMA.read_text())
    assert schema == json_schema()
    manifest = json.loads((family.out / MANIFEST).read_text())
    assert set(manifest) | {"custom_code"} == set(schema["properties"])
    variant = schema["$defs"]["Variant"]
    assert set(manifest["variants"][0]) == set(variant["properties"])
    assert variant["additionalProperties"] is False
    assert copy.deepcopy(schema)["properties"]["schema_version"]["const"] == 1
