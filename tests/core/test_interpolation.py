"""The formula, against exact arithmetic and across the ways of cutting a tensor up."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dami_merge.interpolation import FLOATING_DTYPES, interpolate
from dami_router.errors import FailureError

LAMBDAS = st.floats(0.0, 1.0)
SEEDS = st.integers(0, 2**31)


def pair(seed: int, dtype: torch.dtype, n: int = 97) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    instruct = torch.randn(n, generator=generator, dtype=torch.float64)
    thinking = instruct + 0.1 * torch.randn(n, generator=generator, dtype=torch.float64)
    return instruct.to(dtype), thinking.to(dtype)


@given(seed=SEEDS, dtype=st.sampled_from(FLOATING_DTYPES))
def test_endpoints_come_back_bit_for_bit(seed: int, dtype: torch.dtype) -> None:
    """λ=0 and λ=1 return the endpoints' own bits, NaN and −0 included."""
    instruct, thinking = pair(seed, dtype)
    instruct[0], thinking[1] = float("nan"), -0.0
    assert interpolate(instruct, thinking, 0.0) is instruct
    assert interpolate(instruct, thinking, 1.0) is thinking


@given(seed=SEEDS, lambda_=LAMBDAS, dtype=st.sampled_from((torch.bfloat16, torch.float16, torch.float32)))
def test_result_is_within_rounding_of_the_exact_value(seed: int, lambda_: float, dtype: torch.dtype) -> None:
    """The result is the exact (1−λ)I + λT, up to fp32 rounding and one rounding to the output dtype."""
    instruct, thinking = pair(seed, dtype, n=16)
    result = interpolate(instruct, thinking, lambda_)
    for i, t, r in zip(instruct.tolist(), thinking.tolist(), result.tolist(), strict=True):
        exact = (1 - Fraction(lambda_)) * Fraction(i) + Fraction(lambda_) * Fraction(t)
        scale = max(abs(i), abs(t))
        tiny = Fraction(torch.finfo(dtype).tiny)
        unit = Fraction(torch.finfo(dtype).eps) / 2 + 4 * Fraction(torch.finfo(torch.float32).eps)
        assert abs(Fraction(r) - exact) <= unit * Fraction(scale) + tiny


@given(seed=SEEDS, lambda_=st.floats(-0.5, 1.5), cut=st.integers(1, 96), dtype=st.sampled_from(FLOATING_DTYPES))
def test_bits_do_not_depend_on_how_a_tensor_is_cut(seed: int, lambda_: float, cut: int, dtype: torch.dtype) -> None:
    """Two blocks give the same bits as the whole, so that a streaming builder agrees with a merge in one piece."""
    instruct, thinking = pair(seed, dtype)
    whole = interpolate(instruct, thinking, lambda_)
    parts = [interpolate(instruct[s], thinking[s], lambda_) for s in (slice(0, cut), slice(cut, None))]
    assert torch.equal(torch.cat(parts), whole)


@given(seed=SEEDS, lambda_=LAMBDAS, dtype=st.sampled_from(FLOATING_DTYPES))
def test_walking_from_either_end_meets(seed: int, lambda_: float, dtype: torch.dtype) -> None:
    """Swapping the endpoints and taking 1−λ gives the same model where 1−λ is exact."""
    lambda_ = round(lambda_ * 1024) / 1024
    instruct, thinking = pair(seed, dtype)
    forth, back = interpolate(instruct, thinking, lambda_), interpolate(thinking, instruct, 1.0 - lambda_)
    if lambda_ != 0.5:
        assert torch.equal(forth, back)
    else:
        torch.testing.assert_close(forth, back)


def test_inputs_are_left_alone() -> None:
    """Neither endpoint is changed, also where no conversion makes a copy of it."""
    for dtype in FLOATING_DTYPES:
        instruct, thinking = pair(0, dtype)
        before = instruct.clone(), thinking.clone()
        for lambda_ in (0.0, 0.3, 0.5, 0.7, 1.0):
            interpolate(instruct, thinking, lambda_)
        assert torch.equal(instruct, before[0])
        assert torch.equal(thinking, before[1])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    """8-bit floats and integers are refused with the way out."""
    values = torch.zeros(4).to(dtype)
    with pytest.raises(FailureError, match="quantise"):
        interpolate(values, values, 0.5)


def test_differing_dtypes_are_refused() -> None:
    """The formula does not choose a dtype: its callers align them."""
    with pytest.raises(FailureError, match="cannot interpolate"):
        interpolate(torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16), 0.5)
