"""Cut the schema of one kind out of a project's own file, for the tests of `dami deploy`.

    python extract.py FILE [VERSION] > NAME.json

A custom resource definition gives the schema of one of its versions; a JSON Schema stays whole. Descriptions and
examples are removed, and pod templates (`containers`) become open objects: kubernetes-validate checks those.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

_DROPPED = ("description", "example", "examples", "status", "title")


def main() -> None:
    """Print the schema."""
    data = yaml.load(
        Path(sys.argv[1]).read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )
    if data.get("kind") == "CustomResourceDefinition":
        versions = {v["name"]: v["schema"]["openAPIV3Schema"] for v in data["spec"]["versions"]}
        data = versions[sys.argv[2]]
    json.dump(small(data), sys.stdout, separators=(",", ":"), sort_keys=True)
    sys.stdout.write("\n")


def small(node: Any, inside: bool = False) -> Any:
    """Return a schema without what the tests do not need; `inside`: the keys are names of properties."""
    if isinstance(node, list):
        return [small(one) for one in node]
    if not isinstance(node, dict):
        return node
    if not inside and "containers" in node.get("properties", {}):
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    kept = {k: v for k, v in node.items() if inside or k not in _DROPPED}
    return {k: small(v, inside=k in ("properties", "definitions", "$defs", "patternProperties") and not inside)
            for k, v in kept.items()}  # fmt: skip


if __name__ == "__main__":
    main()
