"""One thing that `dami verify` found wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """A finding, as precise as its kind allows: which variant, file and tensor."""

    code: str
    message: str
    variant: str | None = None
    file: str | None = None
    tensor: str | None = None

    def __str__(self) -> str:
        place = "/".join(part for part in (self.variant, self.file) if part)
        return f"{self.code}: {place}: {self.message}" if place else f"{self.code}: {self.message}"

    def as_dict(self) -> dict[str, Any]:
        """Return the problem for JSON."""
        return asdict(self)
