"""hf-dami: the `dami` commands as `hf dami`, an extension of huggingface_hub's command line."""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
