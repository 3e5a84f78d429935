"""Measure the table of docs/pairs.md and write it; --check says whether it is up to date.

    python docs/pairs_table.py [--check]

Needs the development environment: it writes shrunk random pairs and runs check, mergekit's plan and live on them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "pairs.md"
START, END = "<!-- table:", "<!-- end -->"


def main() -> int:
    """Write the table, or compare it with --check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where the table is out of date")
    sys.path.insert(0, str(ROOT / "tests"))
    from support.pair_table import rendered

    arguments, old = parser.parse_args(), TARGET.read_text(encoding="utf-8")
    new = with_table(old, rendered())
    if arguments.check:
        if new != old:
            sys.stderr.write("docs/pairs.md is out of date; run `python docs/pairs_table.py` and commit it\n")
        return int(new != old)
    TARGET.write_text(new, encoding="utf-8")
    return 0


def with_table(text: str, table: str) -> str:
    """Return the page with another table between its two markers."""
    start = text.index("\n", text.index(START)) + 1
    return text[:start] + "\n" + table + "\n" + text[text.index(END) :]


if __name__ == "__main__":
    raise SystemExit(main())
