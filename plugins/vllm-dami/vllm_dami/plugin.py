"""vLLM calls `register` in every process, whatever model it serves; it loads nothing."""

from __future__ import annotations

__all__ = ["register"]


def register() -> None:
    """Add `Dami…` and `DamiUniform…` for each architecture of vLLM; the classes are made when a model asks for one."""
    from vllm import ModelRegistry

    from vllm_dami.pair_settings import PREFIX, UNIFORM

    known = [name for name in ModelRegistry.models if not name.startswith(PREFIX)]
    for made in (prefix + name for name in known for prefix in (PREFIX, UNIFORM)):
        if made not in ModelRegistry.models:
            ModelRegistry.register_model(made, f"vllm_dami.pair_classes:{made}")
