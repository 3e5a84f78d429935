"""Parquet files, read with pyarrow (extra `parquet`), a thousand rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dami_router.datasets.tables import MAX_BYTES
from dami_router.errors import FailureError, MisuseError

__all__ = ["ParquetTable"]

_ROWS = 1000


class ParquetTable:
    """The top-level columns of one parquet file."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name

    @property
    def columns(self) -> list[str]:
        """The columns' names."""
        with self._opened() as file:
            return list(file.schema_arrow.names)

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the rows' values of these columns; each place is the row's number, from 1."""
        import pyarrow

        number = 0
        with self._opened() as file:
            try:
                for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns), use_threads=False):
                    for row in batch.to_pylist():
                        number += 1
                        yield f"{self._name}: row {number}", row
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                raise MisuseError(f"{self._name}: row {number + 1}: damaged parquet: {_first(error)}") from None

    def _opened(self) -> Any:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise FailureError("parquet files need pyarrow", hint="pip install 'dami-router[parquet]'") from None
        try:
            file = pyarrow.parquet.ParquetFile(self._path)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise MisuseError(f"{self._name}: not a parquet file: {_first(error)}") from None
        groups = (file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if sum(groups) > MAX_BYTES:
            file.close()
            raise MisuseError(f"{self._name}: more than {MAX_BYTES >> 30} GiB", hint="use a smaller part of it")
        return file


def _first(error: Exception) -> str:
    return f"{str(error).splitlines()[0] if str(error) else type(error).__name__:.200}"
