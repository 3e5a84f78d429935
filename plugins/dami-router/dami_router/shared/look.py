"""The look of every page that this project writes: colours of both themes, type, tables. See `look.css`."""

from __future__ import annotations

from importlib.resources import files

__all__ = ["look_css"]


def look_css() -> str:
    """Return the style sheet's text."""
    return files("dami_router.shared").joinpath("look.css").read_text(encoding="utf-8")
