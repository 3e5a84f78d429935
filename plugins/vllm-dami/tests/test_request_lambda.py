"""λ of a request, and its salt."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_dami.request_lambda import LAMBDA, SALT, read_lambda, salt_for, salted


@given(st.floats(0, 1))
def test_every_number_in_the_interval_is_a_lambda(lambda_: float) -> None:
    """A number in [0, 1] is taken as it is, and none is no λ."""
    assert read_lambda({LAMBDA: lambda_}) == lambda_
    assert read_lambda({}) is read_lambda(None) is read_lambda({LAMBDA: None}) is None


@pytest.mark.parametrize("value", [-0.001, 1.001, math.nan, math.inf, -math.inf, "0.5", "x", True, False, [0.5], {}])
def test_anything_else_is_refused_by_name(value: object) -> None:
    """Out of range, NaN, text, a truth value or a list: the message names the field and the interval."""
    with pytest.raises(ValueError, match=r"vllm_xargs: `lambda` must be .*\[0, 1\], found"):
        read_lambda({LAMBDA: value})


@given(st.none() | st.floats(0, 1), st.none() | st.floats(0, 1), st.text(max_size=300))
def test_a_salt_is_for_one_lambda(one: float | None, other: float | None, own: str) -> None:
    """A salt names its λ exactly, whatever the client's own salt, and vLLM takes it: at most 128 plain characters."""
    salt = salt_for(one, own)
    assert salted({SALT: salt}, one)
    assert salted({SALT: salt}, other) == (repr(one) == repr(other))
    assert len(salt) <= 128
    assert salt.isascii()
    assert salt.isprintable()


def test_clients_keep_their_own_salts() -> None:
    """Two clients with salts of their own share nothing at the same λ; without a salt nothing is shared with either."""
    assert len({salt_for(0.5), salt_for(0.5, "a"), salt_for(0.5, "b"), salt_for(0.25, "a")}) == 4


def test_a_request_without_a_salt_is_not_salted() -> None:
    """Nor is one whose salt is not text."""
    assert not salted(None, 0.5)
    assert not salted({SALT: 1}, 0.5)
