"""TGI's own description of its routes, where it is at hand: optional test data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

CONTRACT = Path(
    os.environ.get("DAMI_TGI_CONTRACT", Path(__file__).parents[6] / "shared" / "contracts" / "tgi_openapi.json")
)


def contract() -> dict[str, Any]:
    """Return the description; skips the test where there is none."""
    if not CONTRACT.is_file():
        pytest.skip(f"TGI's own description is not here: {CONTRACT.name}; DAMI_TGI_CONTRACT may name it")
    return dict(json.loads(CONTRACT.read_text(encoding="utf-8")))


def check(schema: dict[str, Any], value: Any, document: dict[str, Any], at: str = "") -> None:
    """Assert that a value has what a schema of TGI's description requires, and the right types."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    if value is None:
        # The description is wrong about nullables in streams, so null is let through everywhere.
        return
    for part in schema.get("allOf", []):
        check(part, value, document, at)
    kinds: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
    }
    assert isinstance(value, kinds.get(schema.get("type", ""), object)), f"{at}: {value!r} is no {schema['type']}"
    if isinstance(value, dict):
        assert set(schema.get("required", [])) <= set(value), at
        for name, part in schema.get("properties", {}).items():
            if name in value:
                check(part, value[name], document, f"{at}.{name}")
    for item in value if isinstance(value, list) else ():
        check(schema.get("items", {}), item, document, f"{at}[]")
