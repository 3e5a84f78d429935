"""The formula θ(λ) = (1−λ)·I + λ·T, the only place where it is computed.

The mergekit method and the live engine call `interpolate`, the builder `BlockInterpolator`,
which computes T−I once for many λ. Both end in the same three roundings, so that all tools
agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dami_router.errors import FailureError

__all__ = ["FLOATING_DTYPES", "TORCH_DTYPES", "BlockInterpolator", "interpolate"]

FLOATING_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""What can be interpolated. 8-bit floats carry scales of their own and cannot."""

TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
"""The same by the names that safetensors gives them."""


def interpolate(instruct: torch.Tensor, thinking: torch.Tensor, lambda_: float) -> torch.Tensor:
    """Return (1−λ)·instruct + λ·thinking in the endpoints' own dtype.

    Both tensors have one shape, dtype (bf16, fp16, fp32 or fp64) and device. λ is any finite
    number: 0 and 1 return the endpoint itself, bit for bit (the same tensor, not a copy).
    Computed in fp32 (fp64 for fp64 inputs) as I + λ(T−I) for λ < ½, else T − (1−λ)(T−I),
    and rounded once.

    Raises FailureError for a dtype that cannot be interpolated, or where the two differ.
    """
    _check(instruct, thinking)
    if lambda_ == 0.0:
        return instruct
    if lambda_ == 1.0:
        return thinking
    wide = thinking.to(_wide(thinking.dtype))
    difference = wide.sub_(instruct) if wide is not thinking else thinking - instruct
    from_thinking, step = _step(lambda_)
    # Multiply and add are two steps on purpose. A fused one (torch.lerp, add with alpha) is
    # rounded differently in the vector body and the tail of an array, and on a GPU: the bits
    # would depend on how a tensor is cut into blocks.
    return difference.mul_(step).add_(thinking if from_thinking else instruct).to(instruct.dtype)


class BlockInterpolator:
    """`interpolate` for many λ at once, block by block, in memory that is allocated once.

    `capacity` is the largest block in elements. On a GPU the same kernels round the same way:
    subtract, multiply and add are each correctly rounded in IEEE arithmetic.
    """

    def __init__(self, capacity: int, device: str = "cpu") -> None:
        self._capacity = capacity
        self._device = torch.device(device)
        self._memory: dict[torch.dtype, torch.Tensor] = {}
        self._scalars: dict[tuple[float, torch.dtype], torch.Tensor] = {}

    def write(
        self, instruct: torch.Tensor, thinking: torch.Tensor, lambdas: Sequence[float], out: Sequence[torch.Tensor]
    ) -> None:
        """Write interpolate(instruct, thinking, λ) into each of `out`, one for each λ.

        The endpoints' blocks are 1-D, of one floating dtype and at most `capacity` elements. An
        `out` may have another floating dtype: the result is rounded to the endpoints' dtype
        first, then cast, as mergekit does for `out_dtype`.
        """
        _check(instruct, thinking)
        ends = {0.0: instruct, 1.0: thinking}
        between = any(lambda_ not in ends for lambda_ in lambdas)
        wide = _wide(instruct.dtype)
        a, b, difference, work = self._buffers(wide, instruct.numel())
        if wide == instruct.dtype:
            a, b = instruct, thinking
        elif between:
            a.copy_(instruct)
            b.copy_(thinking)
        if between:
            torch.sub(b, a, out=difference)
        for lambda_, target in zip(lambdas, out, strict=True):
            if lambda_ in ends:
                target.copy_(ends[lambda_])
                continue
            from_thinking, step = _step(lambda_)
            # No rounding is left where the target is as wide as the arithmetic.
            made = target if target.dtype == wide == instruct.dtype else work
            torch.mul(difference, self._scalar(step, wide), out=made).add_(b if from_thinking else a)
            if made is work:
                target.copy_(work if target.dtype == instruct.dtype else work.to(instruct.dtype))

    def _scalar(self, value: float, dtype: torch.dtype) -> torch.Tensor:
        # Made once: wrapping a Python number takes torch as long as multiplying a small block.
        key = (value, dtype)
        if key not in self._scalars:
            self._scalars[key] = torch.tensor(value, dtype=dtype)
        return self._scalars[key]

    def _buffers(self, dtype: torch.dtype, count: int) -> tuple[torch.Tensor, ...]:
        if dtype not in self._memory:
            self._memory[dtype] = torch.empty((4, self._capacity), dtype=dtype, device=self._device)
        return tuple(row[:count] for row in self._memory[dtype])


def _step(lambda_: float) -> tuple[bool, float]:
    # Whether to start from Thinking, and how much of T−I to add from there. λ−1 is exactly
    # −(1−λ), so that the second form is T − (1−λ)(T−I), bit for bit.
    return (False, lambda_) if lambda_ < 0.5 else (True, lambda_ - 1.0)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check(instruct: torch.Tensor, thinking: torch.Tensor) -> None:
    if instruct.dtype not in FLOATING_DTYPES or instruct.dtype != thinking.dtype:
        raise FailureError(
            f"cannot interpolate {_name(instruct.dtype)} with {_name(thinking.dtype)};"
            " expected one of bf16, fp16, fp32 or fp64 on both sides",
            hint="quantised endpoints (fp8, int): start from the unquantised checkpoints, quantise the result",
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
