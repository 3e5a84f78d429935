"""From an endpoint's stored bytes to numbers: fp8 is multiplied with its scales, everything else is read as it is."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import torch

from dami_merge.checkpoints.tensor_view import Piece, Scaling
from dami_merge.interpolation.formula import TORCH_DTYPES

__all__ = ["StoredValues"]

_STORED = TORCH_DTYPES | {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
_SCALES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F8_E8M0": torch.float8_e8m0fnu}
_KEPT = 64


class StoredValues:
    """Reads the values of one endpoint's pieces; keeps the scales of the tensors read last. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._scales: OrderedDict[Scaling, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, piece: Piece, data: memoryview, dtype: torch.dtype, device: str = "cpu") -> torch.Tensor:
        """Return the piece's elements, 1-D, in `dtype`: fp8 · scale is rounded to fp32 and then to that."""
        stored = torch.frombuffer(data, dtype=_STORED[piece.info.dtype]).to(device)
        if piece.scaling is None:
            return stored.to(dtype)
        return stored.float().mul_(self._spread(piece, piece.scaling, device)).to(dtype)

    def _spread(self, piece: Piece, scaling: Scaling, device: str) -> torch.Tensor:
        """Return the scale of every element of a piece."""
        scales = self._read(scaling)
        if scales.numel() == 1:
            return scales.flatten().to(device)
        columns = scaling.columns
        before = piece.first // columns
        rows = torch.arange(before, (piece.first + piece.count - 1) // columns + 1)
        matrix = rows // scaling.rows if scaling.stack > 1 else torch.zeros_like(rows)
        lines = matrix * scaling.grid[0] + rows % scaling.rows // scaling.block[0]
        across = torch.arange(columns) // scaling.block[1]
        spread = scales[lines].to(device)[:, across.to(device)].flatten()
        first = piece.first - before * columns
        return spread[first : first + piece.count]

    def _read(self, scaling: Scaling) -> torch.Tensor:
        with self._lock:
            if scaling in self._scales:
                self._scales.move_to_end(scaling)
                return self._scales[scaling]
        with (self._folder / scaling.info.file).open("rb") as file:
            file.seek(scaling.info.start)
            data = bytearray(file.read(scaling.info.nbytes))
        scales = torch.frombuffer(data, dtype=_SCALES[scaling.info.dtype]).float().reshape(-1, scaling.grid[1])
        with self._lock:
            self._scales[scaling] = scales
            while len(self._scales) > _KEPT:
                self._scales.popitem(last=False)
        return scales
