"""One thing that comparing two endpoints, or reading a recipe, has to say."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Finding", "few"]

_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One thing that `dami check` has to say. An `error` stops a merge, a `warning` does not.

    `tool` names the one tool that can make the merge, where stock `mergekit-yaml` cannot.
    """

    severity: Literal["error", "warning"]
    code: str
    message: str
    hint: str | None = None
    tool: Literal["dami build"] | None = None

    def __str__(self) -> str:
        text = f"{self.severity}: {self.message}"
        return f"{text}\n  hint: {self.hint}" if self.hint else text

    def as_dict(self) -> dict[str, Any]:
        """Return the finding for JSON."""
        return asdict(self)


def few(names: list[str]) -> str:
    """Return the first of some names, quoted; `…` stands for more."""
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return shown + (", …" if len(names) > _SHOWN else "")
