"""Tables from untrusted files: JSON lines, CSV and parquet, row by row, each with its place for messages."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from dami_router.errors import FailureError, MisuseError

__all__ = ["SUFFIXES", "Table"]

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
"""Suffixes of readable files."""

MAX_BYTES = 4 << 30
"""Largest size of an unpacked dataset; larger ones are refused."""

_MAX_LINE = 16 << 20


class Table(Protocol):
    """Rows under named columns."""

    @property
    def columns(self) -> list[str]:
        """The columns' names, in order; for JSON lines, those of the first row."""
        ...

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield each row's place (file and line) and its values of at least these columns."""
        ...


@dataclass(frozen=True)
class JsonLines:
    path: Path
    name: str

    @property
    def columns(self) -> list[str]:
        return next((list(row) for _, row in self.rows(())), [])

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:  # noqa: ARG002
        for number, line in _lines(self.path, self.name):
            if not line.strip():
                continue
            where = f"{self.name}:{number}"
            try:
                data = json.loads(line)
            except (ValueError, RecursionError):
                hint = "convert the JSON array to one object per line" if line.lstrip().startswith("[") else None
                raise MisuseError(f"{where}: not a JSON object", hint=hint) from None
            if not isinstance(data, dict):
                raise MisuseError(f"{where}: not a JSON object", hint="expected one object per line")
            yield where, data


@dataclass(frozen=True)
class Csv:
    path: Path
    name: str
    delimiter: str

    @property
    def columns(self) -> list[str]:
        return next((cells for _, cells in self._cells()), [])

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:  # noqa: ARG002
        rows = self._cells()
        _, header = next(rows)
        for where, cells in rows:
            if len(cells) > len(header):
                raise MisuseError(f"{where}: more cells than columns in the header")
            yield where, dict(zip(header, cells, strict=False))

    def _cells(self) -> Iterator[tuple[str, list[str]]]:
        lines = (line for _, line in _lines(self.path, self.name))
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        try:
            yield from ((f"{self.name}:{reader.line_num}", cells) for cells in reader if cells)
        except csv.Error as error:
            raise MisuseError(f"{self.name}:{reader.line_num}: not CSV: {error}") from None


def _lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Yield numbered lines of text, with bounds on the size of a line and of the file."""
    size = 0
    try:
        with _opened(path) as file:
            number = 0
            while line := file.readline(_MAX_LINE + 1):
                number += 1
                size += len(line)
                if len(line) > _MAX_LINE:
                    raise MisuseError(f"{name}:{number}: line is longer than {_MAX_LINE >> 20} MiB")
                if size > MAX_BYTES:
                    raise MisuseError(f"{name}: more than {MAX_BYTES >> 30} GiB", hint="use a smaller part of it")
                yield number, _decoded(line, f"{name}:{number}", first=number == 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FailureError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _decoded(line: bytes, where: str, *, first: bool) -> str:
    try:
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError:
        raise MisuseError(f"{where}: not UTF-8 text") from None
