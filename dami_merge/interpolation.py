"""The formula θ(λ) = (1−λ)·I + λ·T, the only place where it is computed.

Every tool of this project (the mergekit method, the builder, the live engine) calls
`interpolate`, so that all of them agree bit for bit.
"""

from __future__ import annotations

import torch

from dami_router.errors import FailureError

__all__ = ["FLOATING_DTYPES", "interpolate"]

FLOATING_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""What can be interpolated. 8-bit floats carry scales of their own and cannot."""


def interpolate(instruct: torch.Tensor, thinking: torch.Tensor, lambda_: float) -> torch.Tensor:
    """Return (1−λ)·instruct + λ·thinking in the endpoints' own dtype.

    Both tensors have one shape, dtype (bf16, fp16, fp32 or fp64) and device. λ is any finite
    number: 0 and 1 return the endpoint itself, bit for bit (the same tensor, not a copy).
    Computed in fp32 (fp64 for fp64 inputs) as I + λ(T−I) for λ < ½, else T − (1−λ)(T−I),
    and rounded once.

    Raises FailureError for a dtype that cannot be interpolated, or where the two differ.
    """
    if instruct.dtype not in FLOATING_DTYPES or instruct.dtype != thinking.dtype:
        raise FailureError(
            f"cannot interpolate {_name(instruct.dtype)} with {_name(thinking.dtype)};"
            " expected one of bf16, fp16, fp32 or fp64 on both sides",
            hint="quantised endpoints (fp8, int): start from the unquantised checkpoints, quantise the result",
        )
    if lambda_ == 0.0:
        return instruct
    if lambda_ == 1.0:
        return thinking
    wide = torch.float64 if instruct.dtype == torch.float64 else torch.float32
    near, far, step = (instruct, thinking, lambda_) if lambda_ < 0.5 else (thinking, instruct, 1.0 - lambda_)
    # Multiply and add are two steps on purpose. A fused one (torch.lerp, add with alpha) is
    # rounded differently in the vector body and the tail of an array, and on a GPU: the bits
    # would depend on how a tensor is cut into blocks.
    result = far.to(wide)
    result = result.sub_(near) if result is not far else far - near
    return result.mul_(step).add_(near).to(instruct.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
