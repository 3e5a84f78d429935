"""The task: what a chain is worth, how answers are written, and what the grader lets pass."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_merge.lab.task import (
    DIGITS,
    OPERATORS,
    THINK_CLOSE,
    THINK_OPEN,
    evaluate,
    format_answer,
    grade,
    has_think_block,
    length,
    make_chain,
    steps,
)

digit = st.sampled_from(DIGITS)
chains = st.integers(1, 12).flatmap(
    lambda n: st.builds(
        make_chain,
        st.text(DIGITS, min_size=n + 1, max_size=n + 1),
        st.text(OPERATORS, min_size=n, max_size=n),
    )
)
formats = st.sampled_from(["direct", "think", "check"])


@pytest.mark.parametrize(
    ("chain", "value"),
    [("3+7-2>5=", "8"), ("7+5>3=", "3"), ("1-2=", "9"), ("9>0<4=", "4"), ("0<9>9=", "9")],
)
def test_chains_are_worked_left_to_right_modulo_ten(chain: str, value: str) -> None:
    """Each operator does what the docstring says, without precedence and without leaving the digits."""
    assert evaluate(chain) == value


@given(chains)
def test_steps_lead_from_first_digit_to_value(chain: str) -> None:
    """The working has one step an operation, and each step starts from the result of the one before."""
    worked = steps(chain)
    assert len(worked) == length(chain)
    assert str(worked[0][0]) == chain[0]
    assert all(before[3] == after[0] for before, after in pairwise(worked))
    assert str(worked[-1][3]) == evaluate(chain)


@given(chains, formats)
def test_every_format_of_the_right_answer_is_accepted(chain: str, style: str) -> None:
    """A model that writes exactly what it is trained to write is graded right."""
    assert grade(format_answer(chain, style), evaluate(chain))  # type: ignore[arg-type]


@given(chains, formats, digit)
def test_any_other_final_digit_is_rejected(chain: str, style: str, other: str) -> None:
    """Only the final digit decides, and it has to be the right one, however good the working is."""
    answer = format_answer(chain, style)[:-1] + other  # type: ignore[arg-type]
    assert grade(answer, evaluate(chain)) == (other == evaluate(chain))


@given(chains, formats, st.text(DIGITS + OPERATORS + "=;| \n", min_size=1, max_size=5))
def test_trailing_text_is_rejected(chain: str, style: str, tail: str) -> None:
    """An answer that goes on after the digit is wrong."""
    assert not grade(format_answer(chain, style) + tail, evaluate(chain))  # type: ignore[arg-type]


@given(chains, formats)
def test_an_answer_that_was_cut_off_is_wrong(chain: str, style: str) -> None:
    """The model has to end its text itself."""
    assert not grade(format_answer(chain, style), evaluate(chain), finished=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "answer",
    ["", "=3", " 3", f"3{THINK_OPEN}{THINK_CLOSE}3", f"{THINK_OPEN}3", f"{THINK_CLOSE}3", f"{THINK_OPEN}{THINK_CLOSE}",
     f"{THINK_OPEN}{THINK_OPEN}{THINK_CLOSE}3", f"{THINK_OPEN}{THINK_CLOSE}{THINK_CLOSE}3", "<eos>3", "٣"],
)  # fmt: skip
def test_malformed_answers_are_wrong(answer: str) -> None:
    """One think block, well opened and closed, or none: anything else before the digit is wrong."""
    assert not grade(answer, "3")


def test_think_blocks_are_seen_in_any_shape() -> None:
    """A lone tag is enough to say that the model was thinking."""
    assert has_think_block("1</think>3")
    assert has_think_block("<think>1")
    assert not has_think_block("3>2<1")


@pytest.mark.parametrize("text", ["", "3", "3=", "3+=", "+3=", "3+4", "3*4=", "33+4=", "3+4==", "3+4=\n"])
def test_text_that_is_no_chain_is_refused(text: str) -> None:
    """The error names the text and shows what a chain looks like."""
    with pytest.raises(ValueError, match=r"not a chain: .*3\+7-2>5="):
        evaluate(text)


def test_a_chain_needs_one_digit_more_than_operators() -> None:
    """The generator refuses parts that do not make a chain."""
    with pytest.raises(ValueError, match="takes 3 digits, got 2"):
        make_chain("12", "+-")


def test_an_unknown_format_is_refused() -> None:
    """The error names the formats there are."""
    with pytest.raises(ValueError, match="direct, think, check"):
        format_answer("1+1=", "loud")  # type: ignore[arg-type]
