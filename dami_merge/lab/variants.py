"""Variants of a lab pair, built in memory from the pair's files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dami_merge.lab.tiny_model import load_endpoint

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

__all__ = ["load_variant"]


def load_variant(pair: Path, lambda_: float) -> Qwen3ForCausalLM:
    """Build the variant at λ ∈ [0, 1] of the pair in ``pair/instruct`` and ``pair/thinking``, in evaluation mode.

    Its weights are those of a merged checkpoint (interpolated in fp32, rounded once to bf16); its arithmetic is fp32.
    """
    from safetensors.torch import load_file

    from dami_merge.interpolation.formula import interpolate

    model = load_endpoint(pair / "instruct")
    instruct, thinking = (load_file(pair / name / "model.safetensors") for name in ("instruct", "thinking"))
    merged = {name: interpolate(tensor, thinking[name], lambda_) for name, tensor in instruct.items()}
    model.load_state_dict(merged | {"lm_head.weight": merged["model.embed_tokens.weight"]})
    return model
