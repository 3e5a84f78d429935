"""Write docs/family.schema.json, the JSON Schema of the family manifest; --check says whether it is up to date.

python docs/schema.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dami_router.manifest.family import json_schema

TARGET = Path(__file__).parent / "family.schema.json"


def main() -> int:
    """Write the schema, or compare it with --check."""
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(
        "docs/family.schema.json is not what dami_router.manifest.family says; run `make docs` and commit it\n"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
