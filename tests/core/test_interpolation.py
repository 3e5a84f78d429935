"""The formula, against exact arithmetic and across the ways of cutting a tensor up."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dami_merge.interpolation.formula import FLOATING_DTYPES, TORCH_DTYPES, BlockInterpolator, interpolate
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
    with pytest.raises(FailureError, match=str(dtype).removeprefix("torch.")) as caught:
        interpolate(values, values, 0.5)
    assert "bf16, fp16, fp32 or fp64" in caught.value.message
    assert "unquantised" in (caught.value.hint or "")
    with pytest.raises(FailureError, match="cannot interpolate"):
        BlockInterpolator(4).write(values, values, [0.0], [values.clone()])


def test_differing_dtypes_are_refused() -> None:
    """The formula does not choose a dtype: its callers align them."""
    for lambda_ in (0.0, 0.5, 1.0):
        with pytest.raises(FailureError, match="cannot interpolate float32 with bfloat16"):
            interpolate(torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16), lambda_)
    with pytest.raises(FailureError, match="cannot interpolate bfloat16 with float16"):
        interpolate(torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float16), 0.5)


def rounded(instruct: torch.Tensor, thinking: torch.Tensor, lambda_: float) -> torch.Tensor:
    """The formula by hand: each of the three operations rounded by itself, one rounding to the endpoints' dtype."""
    wide = torch.float64 if instruct.dtype == torch.float64 else torch.float32
    a, b = instruct.to(wide), thinking.to(wide)
    difference = b - a
    if lambda_ < 0.5:
        made = a + difference * torch.tensor(lambda_, dtype=wide)
    else:
        made = b - difference * torch.tensor(1.0 - lambda_, dtype=wide)
    return made.to(instruct.dtype)


@given(
    seed=SEEDS,
    lambda_=st.floats(-1.0, 2.0) | st.sampled_from([0.25, 0.5, 0.75]),
    dtype=st.sampled_from(FLOATING_DTYPES),
)
def test_the_documented_roundings_are_the_ones_made(seed: int, lambda_: float, dtype: torch.dtype) -> None:
    """I + λ(T−I) below one half, T − (1−λ)(T−I) from it on, in fp32 (fp64 for fp64), to the last bit."""
    instruct, thinking = pair(seed, dtype)
    expected = {0.0: instruct, 1.0: thinking}.get(lambda_, rounded(instruct, thinking, lambda_))
    found = interpolate(instruct, thinking, lambda_)
    assert torch.equal(found, expected)
    assert found.dtype == dtype


def test_one_half_starts_from_thinking() -> None:
    """At λ = ½ the sum starts from the Thinking end: the two ways differ where the difference is rounded."""
    instruct, thinking = torch.tensor([1.0]), torch.tensor([1e-9])
    assert interpolate(instruct, thinking, 0.5).item() == (thinking + 0.5).item()
    tiny = torch.tensor([1e-9])
    assert interpolate(tiny, torch.tensor([1.0]), 0.5).item() == 0.5
    below = 0.5 - 2**-26
    assert interpolate(tiny, torch.tensor([1.0]), below).item() == (tiny + torch.tensor(below)).item()


def test_a_difference_of_large_numbers_does_not_overflow_in_the_middle() -> None:
    """Half-precision endpoints near the largest number are subtracted in fp32."""
    instruct, thinking = torch.tensor([-60000.0]).half(), torch.tensor([60000.0]).half()
    assert interpolate(instruct, thinking, 0.25).item() == -30000.0
    assert interpolate(instruct, thinking, 0.75).item() == 30000.0


MANY = st.lists(st.floats(-0.5, 1.5) | st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=5)


@given(seed=SEEDS, lambdas=MANY, dtype=st.sampled_from(FLOATING_DTYPES), n=st.integers(0, 40))
def test_blocks_for_many_lambda_have_the_bits_of_one(
    seed: int, lambdas: list[float], dtype: torch.dtype, n: int
) -> None:
    """A builder's block is `interpolate`, for every λ at once, whatever was computed in the same memory before."""
    blocks = BlockInterpolator(40)
    for attempt in range(2):
        instruct, thinking = pair(seed + attempt, dtype, n)
        before = instruct.clone(), thinking.clone()
        out = [torch.full((n,), 7.0, dtype=dtype) for _ in lambdas]
        blocks.write(instruct, thinking, lambdas, out)
        for lambda_, made in zip(lambdas, out, strict=True):
            assert torch.equal(made, interpolate(instruct, thinking, lambda_))
        assert torch.equal(instruct, before[0])
        assert torch.equal(thinking, before[1])


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_blocks_copy_the_endpoints_bit_for_bit(dtype: torch.dtype) -> None:
    """λ=0 and λ=1 are copies, not sums: infinities, NaN and the sign of zero stay."""
    odd = torch.tensor([float("inf"), -0.0, float("nan"), 1.0], dtype=dtype)
    other = torch.tensor([1.0, 2.0, 3.0, float("inf")], dtype=dtype)
    for instruct, thinking in ((odd, other), (other, odd)):
        out = [torch.full((4,), 7.0, dtype=dtype) for _ in range(3)]
        BlockInterpolator(4).write(instruct, thinking, [0.0, 0.5, 1.0], out)
        for made, expected in ((out[0], instruct), (out[2], thinking)):
            assert made.view(torch.uint8).tolist() == expected.view(torch.uint8).tolist()


@pytest.mark.parametrize("dtype", FLOATING_DTYPES)
def test_blocks_are_computed_on_the_device_that_was_asked_for(dtype: torch.dtype) -> None:
    """Torch refuses to mix devices, so that `meta`, which holds no numbers, shows where the memory lies."""
    instruct, thinking = (torch.empty(4, dtype=dtype, device="meta") for _ in range(2))
    out = torch.empty(4, dtype=torch.float16, device="meta")
    BlockInterpolator(4, "meta").write(instruct, thinking, [0.3], [out])
    with pytest.raises((RuntimeError, NotImplementedError)):
        BlockInterpolator(4).write(instruct, thinking, [0.3], [out])


@given(
    seed=SEEDS,
    lambda_=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]),
    dtype=st.sampled_from(FLOATING_DTYPES),
    target=st.sampled_from(FLOATING_DTYPES),
)
def test_another_output_dtype_is_cast_from_the_endpoints_own(
    seed: int, lambda_: float, dtype: torch.dtype, target: torch.dtype
) -> None:
    """The result is rounded to the endpoints' dtype first, then cast, as mergekit does for `out_dtype`."""
    instruct, thinking = pair(seed, dtype, 31)
    out = torch.empty(31, dtype=target)
    BlockInterpolator(64).write(instruct, thinking, [lambda_], [out])
    assert torch.equal(out, interpolate(instruct, thinking, lambda_).to(target))


def test_every_lambda_needs_its_place() -> None:
    """A λ without an output, or an output without a λ, is an error rather than left as it was."""
    instruct, thinking = pair(0, torch.float32, 4)
    for count in (1, 3):
        with pytest.raises(ValueError, match="zip"):
            BlockInterpolator(4).write(instruct, thinking, [0.3, 0.4], [torch.empty(4) for _ in range(count)])


def test_blocks_of_any_size_and_precision_may_follow_each_other() -> None:
    """One element or as many as there is memory for, in fp32 and fp64 by turns."""
    blocks = BlockInterpolator(32)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        for n in (1, 32):
            instruct, thinking = pair(n, dtype, n)
            out = torch.empty(n, dtype=dtype)
            blocks.write(instruct, thinking, [0.3], [out])
            assert torch.equal(out, interpolate(instruct, thinking, 0.3))


def test_dtypes_go_by_the_names_that_safetensors_gives_them() -> None:
    """Each name stands for a dtype of its own width, and all of them can be interpolated."""
    assert {name: dtype.itemsize * 8 for name, dtype in TORCH_DTYPES.items()} == {
        "BF16": 16, "F16": 16, "F32": 32, "F64": 64,
    }  # fmt: skip
    assert set(TORCH_DTYPES.values()) == set(FLOATING_DTYPES)
    assert torch.finfo(TORCH_DTYPES["BF16"]).max > torch.finfo(TORCH_DTYPES["F16"]).max
