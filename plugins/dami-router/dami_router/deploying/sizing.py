"""How many GPUs a server needs, and how many sequences it then has room for.

Memory of a server = weights + keys and values of at least one sequence of full length + an allowance for all else.
These are figures to plan with: an engine measures the rest itself when it starts.
"""

from __future__ import annotations

from dataclasses import dataclass

from dami_router.deploying.model_shape import ModelShape
from dami_router.errors import MisuseError

__all__ = ["ALLOWANCE", "GIB", "USABLE", "Fit", "fit", "gpus_of", "loading_seconds", "one_model", "require_fit"]

GIB = 1 << 30
USABLE = 0.9
"""Fraction of a GPU that servers may use; vLLM 0.32 uses 0.92 by default, TGI 3.3 all of it."""
ALLOWANCE = 2 * GIB
"""For each GPU: CUDA's context, activations of a pass, captured graphs. An allowance of ours, not a measurement."""
_SPLITS = (1, 2, 4, 8)
_DOWNLOAD = 100 * 1000 * 1000
"""Bytes per second that a download should reach at least, for the time that a server may take to start."""


@dataclass(frozen=True)
class Fit:
    """One server on `gpus` GPUs: bytes that it needs on each, and the tokens that its KV cache has room for in all.

    With 0 GPUs, a model in the memory of a machine: the bytes that it needs there while it is loaded.
    """

    gpus: int
    needed: int
    cache_tokens: int


def fit(shape: ModelShape, context: int, gpu_bytes: float, usable: float = USABLE) -> Fit | None:
    """Return the smallest split over GPUs of `gpu_bytes` that holds a server; None if 8 of them do not."""
    for gpus in _SPLITS:
        if shape.heads % gpus:
            continue
        shared = min(gpus, shape.kv_heads)  # further GPUs hold copies of the same heads
        fixed = shape.weights // gpus + ALLOWANCE
        needed = fixed + context * shape.token // shared
        room = gpu_bytes * usable
        if needed <= room:
            return Fit(gpus, needed, int((room - fixed) * shared // shape.token))
    return None


def require_fit(shape: ModelShape, context: int, gpu_bytes: float, what: str) -> Fit:
    """Return the fit; raises MisuseError that shows the sum where no split fits."""
    found = fit(shape, context, gpu_bytes)
    if found is None:
        weights, cache = shape.weights / GIB, context * shape.token / GIB
        raise MisuseError(
            f"{what} fits on no GPU of {gpu_bytes / GIB:g} GiB, nor split over 8 of them: weights {weights:.1f} GiB, "
            f"keys and values of one sequence of {context} tokens {cache:.1f} GiB, and {ALLOWANCE / GIB:g} GiB for "
            f"each GPU; a server may use {USABLE:.0%} of a GPU",
            hint="larger GPUs (--gpu-memory), a shorter --context, or a smaller pair",
        )
    return found


def one_model(shape: ModelShape, context: int) -> Fit:
    """Return what one model needs in the memory of a machine, with the keys and values of one sequence."""
    return Fit(0, shape.weights + context * shape.token, context)


def gpus_of(number: int) -> str:
    """Return a number of GPUs in words: `1 GPU`, `2 GPUs`."""
    return f"{number} GPU{'s' * (number != 1)}"


def loading_seconds(shape: ModelShape) -> int:
    """Return how long a server may take until it is ready: ten minutes, and a download at 100 MB/s."""
    return 600 + shape.weights // _DOWNLOAD
