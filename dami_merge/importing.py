"""Importing torch sooner: it is most of what a short command waits for."""

from __future__ import annotations

import gc

__all__ = ["import_torch"]


def import_torch() -> None:
    """Import torch without looking for garbage meanwhile: it makes very many objects, and none of them is garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        if enabled:
            gc.enable()
