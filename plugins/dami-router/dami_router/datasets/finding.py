"""Finding of a dataset's tables: a file, or the files of a dataset on the Hub."""

from __future__ import annotations

from pathlib import Path

from dami_router.datasets.hub_datasets import fetch
from dami_router.datasets.parquet import ParquetTable
from dami_router.datasets.tables import SUFFIXES, Csv, JsonLines, Table
from dami_router.errors import MisuseError

__all__ = ["find_tables", "open_table"]


def find_tables(place: str, config: str | None, split: str | None) -> list[Table]:
    """Open a file, or the files of a Hub dataset; raises MisuseError if there is neither."""
    path = Path(place)
    if path.is_dir():
        raise MisuseError(f"{path}: is a folder; expected a file", hint=f"supported: {', '.join(SUFFIXES)}")
    if path.exists():
        if config or split:
            raise MisuseError("--config and --split need a dataset on the Hub", hint=f"{path} is a file")
        return [open_table(path)]
    if place.endswith(SUFFIXES) or place.startswith((".", "/", "~")):
        raise MisuseError(f"{path}: no such file")
    return [open_table(file, name) for file, name in fetch(place, config, split)]


def open_table(path: Path, name: str | None = None) -> Table:
    """Open one file by its suffix; messages call it `name`."""
    lower = path.name.lower()
    name = name or str(path)
    if not lower.endswith(SUFFIXES):
        raise MisuseError(f"{name}: unsupported file type", hint=f"supported: {', '.join(SUFFIXES)}")
    if lower.endswith(".parquet"):
        return ParquetTable(path, name)
    plain = lower.removesuffix(".gz")
    if plain.endswith((".jsonl", ".json")):
        return JsonLines(path, name)
    return Csv(path, name, "\t" if plain.endswith(".tsv") else ",")
