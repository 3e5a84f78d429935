"""Write the JSON Schemas of the family manifest and of router.yml into docs/; --check says whether they are up to date.

python docs/schema.py [--check]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dami_router.config.router_schema import router_json_schema
from dami_router.manifest.family import json_schema

SCHEMAS = {"family.schema.json": json_schema, "router.schema.json": router_json_schema}


def main() -> int:
    """Write the schemas, or compare them with --check."""
    stale = [name for name, schema in SCHEMAS.items() if not _settle(Path(__file__).parent / name, schema())]
    for name in stale:
        sys.stderr.write(f"docs/{name} is not what dami_router says; run `make docs` and commit it\n")
    return 1 if stale else 0


def _settle(target: Path, schema: Mapping[str, Any]) -> bool:
    """Write one schema; with --check, return whether the file already holds it."""
    text = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    if "--check" in sys.argv[1:]:
        return target.is_file() and target.read_text(encoding="utf-8") == text
    target.write_text(text, encoding="utf-8")
    return True


if __name__ == "__main__":
    sys.exit(main())
