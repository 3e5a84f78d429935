"""Where commands print: results on stdout, everything else on stderr.

A command gets an `Output` and never prints itself. With `--json`, the result is one JSON object; notes and warnings
stay on stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

__all__ = ["Output", "table"]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a text table; columns of numbers are right-aligned."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [bool(rows) and all(_numeric(cell) for cell in column[1:]) for column in columns]

    def line(cells: Sequence[str]) -> str:
        placed = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True))
        return "  ".join(placed).rstrip()

    rule = "  ".join("-" * w for w in widths)
    return "\n".join([line(header), rule, *map(line, rows)])


def _numeric(cell: str) -> bool:
    return not cell or cell == "-" or cell[0].isdigit() or (cell[0] in "+-−.≤" and len(cell) > 1)


@dataclass(frozen=True)
class Output:
    """What a command writes to. With `as_json`, the result is one JSON object instead of text."""

    as_json: bool = False
    stdout: TextIO | None = None
    stderr: TextIO | None = None

    def result(self, text: str, data: Mapping[str, Any]) -> None:
        """Write the command's result: `text`, or `data` under --json."""
        body = json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False) if self.as_json else text
        print(body, file=self.stdout or sys.stdout)

    def note(self, text: str) -> None:
        """Write a line about progress."""
        print(text, file=self.stderr or sys.stderr)

    def warning(self, text: str) -> None:
        """Write a warning; the command continues."""
        self.note(f"warning: {text}")

    def hint(self, text: str) -> None:
        """Suggest the next command; not under --json, since a program reads that output."""
        if not self.as_json:
            self.note(f"next: {text}")
