"""λ read back from the weights, with a bound that the arithmetic guarantees.

Each stored element is v = I + λ(T−I) + e, where e is rounding. |e| is at most h: half a unit
in the last place of v for every rounding to a stored dtype, and a few units of the wide
arithmetic. Least squares with weights 1/h² gives

    λ̂ = Σ d(v−I)/h² / Σ d²/h²   with d = T−I,   and   |λ̂ − λ| ≤ Σ |d|/h / Σ d²/h².

The bound holds whatever the errors' signs: rounding is *not* random here. Where T differs
from I by one unit in the last place, v can only be one of the two, and a plain least squares
would be far off. The weights favour elements near zero, whose rounding is small beside d, and
make the bound tight where the unweighted one would say nothing. This estimate is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Evidence", "Recovered", "gather"]

_PRECISION = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53}


@dataclass
class Evidence:
    """The sums that λ̂ and its bound are made of; they add up over blocks and tensors."""

    top: float = 0.0
    bottom: float = 0.0
    error: float = 0.0

    def add(self, other: Evidence) -> None:
        """Take in another block's sums."""
        self.top += other.top
        self.bottom += other.bottom
        self.error += other.error

    def recovered(self) -> Recovered | None:
        """Return λ̂ with its bound, or None where the endpoints do not differ."""
        if self.bottom <= 0.0:
            return None
        # Sums of many terms round too; a millionth covers what fp64 loses on any model.
        return Recovered(self.top / self.bottom, self.error / self.bottom + 1e-6)


@dataclass(frozen=True)
class Recovered:
    """λ as the weights say it: the true one is within `bound` of `lambda_`."""

    lambda_: float
    bound: float

    def agrees(self, expected: float) -> bool:
        """Whether the weights can have been made at the expected λ."""
        return abs(self.lambda_ - expected) <= self.bound


def gather(
    instruct: torch.Tensor, thinking: torch.Tensor, stored: torch.Tensor, compute: torch.dtype, *, reach: float = 1.0
) -> Evidence:
    """Sum up one block: the endpoints' elements, the stored ones, and the dtype computed in.

    `reach` is max(1, |λ|): extrapolation enlarges the wide arithmetic's error.
    """
    a, b = instruct.to(compute).double(), thinking.to(compute).double()
    v, d = stored.double(), b - a
    unit = 2.0 ** -(50 if compute == torch.float64 else 21)
    h = unit * reach * (d.abs() + a.abs().minimum(b.abs()) + v.abs())
    for dtype in {compute, stored.dtype}:
        smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        h = h + (v.abs() * 2.0 ** -_PRECISION[dtype]).clamp_min(smallest / 2)
    good = torch.isfinite(d) & torch.isfinite(v) & (d != 0)
    r = d[good] / h[good]
    return Evidence(
        top=float((r * (v - a)[good] / h[good]).sum()), bottom=float((r * r).sum()), error=float(r.abs().sum())
    )
