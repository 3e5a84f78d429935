"""λ over depth as a small PNG, drawn without a plotting library.

The same values always give the same bytes (nothing is compressed), so a second push finds
nothing to change.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

__all__ = ["lambda_picture"]

_WIDTH, _HEIGHT, _MARGIN = 640, 140, 8
_PAPER, _BAR, _GRID, _MEAN = range(4)
_COLOURS = bytes((255, 255, 255, 59, 111, 182, 208, 208, 208, 214, 69, 65))


def lambda_picture(values: Sequence[float], mean: float) -> bytes:
    """Draw one bar per layer, its height λ from 0 (bottom) to 1 (top), and a line at the family's λ.

    `values` are λ of the layers, first to last, clipped to [0, 1] here. Returns the bytes of a
    PNG of 640 × 140 pixels.
    """
    rows = [bytearray([_PAPER]) * _WIDTH for _ in range(_HEIGHT)]
    for share in (0.0, 0.5, 1.0):
        rows[_row(share)] = bytearray([_GRID]) * _WIDTH
    slot = (_WIDTH - 2 * _MARGIN) / max(len(values), 1)
    gap = 2 if slot >= 6 else 0
    for i, value in enumerate(values):
        left, right = int(_MARGIN + i * slot), max(int(_MARGIN + (i + 1) * slot) - gap, int(_MARGIN + i * slot) + 1)
        for row in rows[_row(value) : _row(0.0)]:
            row[left:right] = bytes([_BAR]) * (right - left)
    for column in range(0, _WIDTH, 8):
        rows[_row(mean)][column : column + 4] = bytes([_MEAN]) * 4
    return _png(rows)


def _row(share: float) -> int:
    return round((_HEIGHT - 1 - _MARGIN) - min(max(share, 0.0), 1.0) * (_HEIGHT - 1 - 2 * _MARGIN))


def _png(rows: Sequence[bytearray]) -> bytes:
    # Four colours take two bits a pixel; each row begins with its filter, 0 for none.
    packed = b"".join(
        b"\0" + bytes(r[i] << 6 | r[i + 1] << 4 | r[i + 2] << 2 | r[i + 3] for i in range(0, _WIDTH, 4)) for r in rows
    )
    header = struct.pack(">IIBBBBB", _WIDTH, _HEIGHT, 2, 3, 0, 0, 0)
    parts = (_chunk(b"IHDR", header), _chunk(b"PLTE", _COLOURS), _chunk(b"IDAT", _stored(packed)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _stored(data: bytes) -> bytes:
    # One uncompressed block of the zlib format; it holds up to 65535 bytes.
    assert len(data) <= 0xFFFF
    block = b"\x01" + struct.pack("<HH", len(data), len(data) ^ 0xFFFF) + data
    return b"\x78\x01" + block + struct.pack(">I", zlib.adler32(data))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
