"""The record of what a build has finished, so that an interrupted one can resume."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dami_router.shared.durable import sync, write_atomically

__all__ = ["BuildJournal", "Record", "content_key"]


@dataclass(frozen=True)
class Record:
    """A finished weight file: what it was made from, and its own hash."""

    made_from: str
    sha256: str


class BuildJournal:
    """An append-only file of finished weight files, by `variant/file`; a torn last line is no record."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[str, Record] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                self._take(line)

    def get(self, variant: str, file: str) -> Record | None:
        """Return the record of a variant's weight file, if it was finished once."""
        return self._records.get(f"{variant}/{file}")

    def knows(self, variant: str) -> bool:
        """Whether any file of the variant was ever finished here."""
        return any(key.startswith(f"{variant}/") for key in self._records)

    def add(self, variant: str, file: str, record: Record) -> None:
        """Note a finished file; on the disk when this returns."""
        new = not self._path.exists()
        with self._path.open("a", encoding="utf-8") as out:
            # A torn line of a killed run must not swallow this one.
            out.write("\n" + _line(f"{variant}/{file}", record) + "\n")
            out.flush()
            os.fsync(out.fileno())
        if new:
            sync(self._path.parent)
        self._records[f"{variant}/{file}"] = record

    def tidy(self) -> None:
        """Write the journal anew, sorted: the same bytes whatever way led here."""
        lines = [_line(key, record) for key, record in sorted(self._records.items())]
        write_atomically(self._path, "".join(f"{line}\n" for line in lines).encode())

    def _take(self, line: str) -> None:
        try:
            data = json.loads(line)
            self._records[str(data["file"])] = Record(str(data["made_from"]), str(data["sha256"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return


def content_key(facts: Mapping[str, Any]) -> str:
    """Return the sha256 of facts, independent of the order of keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _line(key: str, record: Record) -> str:
    return json.dumps({"file": key, "made_from": record.made_from, "sha256": record.sha256})
