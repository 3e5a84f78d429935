"""The one place where a command speaks: results to stdout, talk to stderr.

A command gets an `Output` and never prints. `--json` turns the result into one JSON
object; notes, warnings and hints stay on stderr in both modes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

__all__ = ["Output", "table"]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows under a header in columns; columns of numbers are aligned right."""
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
    """Where a command writes: `as_json` chooses one JSON object over text on stdout."""

    as_json: bool = False
    stdout: TextIO | None = None
    stderr: TextIO | None = None

    def result(self, text: str, data: Mapping[str, Any]) -> None:
        """Write the command's result: `text` for people, `data` under --json."""
        body = json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False) if self.as_json else text
        print(body, file=self.stdout or sys.stdout)

    def note(self, text: str) -> None:
        """Say what is going on."""
        print(text, file=self.stderr or sys.stderr)

    def warning(self, text: str) -> None:
        """Say what may be wrong though the command goes on."""
        self.note(f"warning: {text}")

    def hint(self, text: str) -> None:
        """Say what to do next; silent under --json, where nobody reads it."""
        if not self.as_json:
            self.note(f"next: {text}")
