"""How a checkpoint is named: a local folder, or a Hub id and a revision."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ModelRef"]


@dataclass(frozen=True)
class ModelRef:
    """An endpoint as a recipe names it: a local folder or a Hub id, `id@revision` for one commit."""

    path: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path
