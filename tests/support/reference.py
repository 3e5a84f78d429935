"""The formula in float64, computed apart from the package, and how far a stored value may lie from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from dami_merge.interpolation.formula import interpolate
from support.builds import same_bits

__all__ = ["assert_formula", "assert_rounded"]


def assert_formula(
    found: Mapping[str, torch.Tensor], sides: Sequence[Mapping[str, torch.Tensor]], lambda_: float
) -> None:
    """Assert that a variant has the endpoints' tensors, each the package's own formula bit for bit, and rounded so."""
    instruct, thinking = sides
    assert found.keys() == instruct.keys()
    for name, value in found.items():
        assert same_bits(value, interpolate(instruct[name], thinking[name], lambda_)), (lambda_, name)
        assert_rounded(value, instruct[name], thinking[name], lambda_)


def assert_rounded(found: torch.Tensor, instruct: torch.Tensor, thinking: torch.Tensor, lambda_: float) -> None:
    """Assert that each stored value is within half a unit in its last place of (1−λ)·I + λ·T.

    The arithmetic before the one rounding is in fp32, whose own error is a few 2⁻²⁴ of the endpoints.
    """
    a, b, stored = instruct.double(), thinking.double(), found.double()
    exact = (1 - lambda_) * a + lambda_ * b
    unit = torch.nextafter(found.abs(), torch.full_like(found, torch.inf)).double() - stored.abs()
    room = unit / 2 + 2.0**-22 * (a.abs() + b.abs())
    assert ((stored - exact).abs() <= room).all()
