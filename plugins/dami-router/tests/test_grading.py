"""Grading: what counts as right, what does not, and that nothing that a model wrote is run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_router.errors import FailureError, MisuseError
from dami_router.grading import Grader, grader_for, grader_named
from dami_router.grading.choices import chosen_letter
from dami_router.grading.graders import Exact, Numeric
from dami_router.grading.numbers import last_number, only_number


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("4", "4", True),
        (" 4\n", "4", True),
        ("The answer is \\boxed{ 4 }.", "4", True),
        ("so\n#### 4", "4", True),
        ("New  York", "New York", True),
        ("4.", "4", False),
        ("14", "4", False),
        ("a", "A", False),
        ("", "4", False),
    ],
)
def test_exact(answer: str, expected: str, right: bool) -> None:
    """Equal but for white space, as a whole or where it is marked."""
    assert Exact().grade(answer, expected) == right


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("The answer is 42.", "42", True),
        ("First 17, then 42", "42", True),
        ("42 apples, from 17", "42", False),
        ("#### 42\nand 17 more", "42", True),
        ("\\boxed{42} of 50", "42", True),
        ("\\boxed{5 \\text{ cm}}", "5", True),
        ("1,234", "1234", True),
        ("1{,}234", "1,234", True),
        ("$18", "18", True),
        ("\\$18.00", "18", True),
        ("42 %", "42\\%", True),
        ("−7", "-7", True),
        ("x=-7", "-7", True),
        ("9-7", "-7", False),
        ("9 - 7 = 2", "2", True),
        ("1/2", "0.5", True),
        ("\\frac{1}{2}", "0.5", True),
        ("-\\dfrac{3}{4}", "-0.75", True),
        ("1.5e3", "1500", True),
        ("0.3333333", "1/3", True),
        ("0.333", "1/3", False),
        ("1000001", "1000000", False),
        ("123456789012345678901", "123456789012345678902", False),
        ("1/0", "1", False),
        ("\\boxed{2^{10}}", "10", False),
        ("no number", "0", False),
        ("", "0", False),
        ("9" * 5000, "9", False),
        ("1e99", "1", False),
    ],
)
def test_numeric(answer: str, expected: str, right: bool) -> None:
    """The same number, however it is written: marked, or the last of the text."""
    assert Numeric().grade(answer, expected) == right


@pytest.mark.parametrize("expected", ["two", "", "3 or 4", "2^{10}", "x = 5", "\\sqrt{2}", "(1, 2)", "12:30"])
def test_what_is_no_number_is_not_expected_as_one(expected: str) -> None:
    """`numeric` says which expected answers it cannot compare, rather than to call every answer wrong."""
    assert Numeric().unfit(expected) is not None


@given(st.fractions(max_denominator=1000))
def test_fractions_are_read_back(value: Fraction) -> None:
    """A fraction written with a slash or as LaTeX is that fraction."""
    sign = "-" if value < 0 else ""
    written = f"{sign}{abs(value.numerator)}/{value.denominator}"
    latex = f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    assert only_number(written) == only_number(latex) == last_number(f"it is {latex}.") == value


@given(st.text(alphabet="0123456789.,-+eE/\\frac{}$ ^%x", max_size=60))
def test_any_text_is_graded(text: str) -> None:
    """Whatever stands in an answer, it is right or wrong, and at once."""
    assert Numeric().grade(text, "7") in (0.0, 1.0)
    assert Exact().grade(text, "7") in (0.0, 1.0)


@pytest.mark.parametrize(
    "text", ["1" * 200_000, "1," * 100_000, "\\frac{1" * 50_000, "- " * 100_000, "\\text{" * 50_000]
)
def test_long_texts_take_no_time(text: str) -> None:
    """Texts made to be slow are graded in seconds of computing at most: backtracking over them would take hours."""
    begun = time.process_time()
    Numeric().grade(text, "7")
    assert time.process_time() - begun < 5.0


def test_the_grader_is_chosen_by_what_is_expected() -> None:
    """Numbers are compared as numbers, letters as choices, else text; without answers nothing; a mixture is refused."""
    expected = (["1", "-2,000"], ["B", "(c)"], ["1", "x"], [None, None])
    assert [grader_for(x) for x in expected] == ["numeric", "choice", "exact", "none"]
    assert [getattr(grader_named(x), "name", None) for x in ("exact", "none")] == ["exact", None]
    with pytest.raises(MisuseError, match="some have none"):
        grader_for(["1", None])


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" (b). ", "B"),
        ("**C**", "C"),
        ("The answer is (D).", "D"),
        ("Answer: $B$", "B"),
        ("**Answer:** C", "C"),
        ("The correct answer is option A, because a cat is an animal.", "A"),
        ("The answer is A at first sight. But no: the correct choice is C.", "C"),
        ("So we get \\boxed{\\text{D}}", "D"),
        ("\\boxed{B) 12 m}", "B"),
        ("Long division gives 12.\n\nB) 12 m", "B"),
        ("Only (C) fits; the others do not.", "C"),
        ("Neither (A) nor (B) is certain.", None),
        ("The answer is a mammal.", None),
        ("Answer: I'm not sure", None),
        ("A cat sat there", None),
        ("", None),
        ("42", None),
    ],
)
def test_the_letter_that_an_answer_settles_on_is_found(answer: str, letter: str | None) -> None:
    """A bare, marked, stated or only bracketed letter is a choice; articles, words and doubts are none."""
    assert chosen_letter(answer) == letter


def test_choices_are_compared_as_letters() -> None:
    """Case and brackets of the expected letter do not matter; an expected word cannot be compared."""
    grader = grader_named("choice")
    assert grader is not None
    assert [grader.grade("The answer is (B)", x) for x in ("B", "(b)", "C")] == [1.0, 1.0, 0.0]
    assert [grader.unfit(x) for x in ("d.", "yes", "12")] == [None, "is not a single letter", "is not a single letter"]
    begun = time.process_time()
    grader.grade("the answer is the " * 20_000 + "(" * 20_000, "B")
    assert time.process_time() - begun < 5.0


@pytest.fixture(scope="module")
def mathematics() -> Iterator[Grader]:
    """math-verify in its worker process."""
    pytest.importorskip("math_verify", reason="needs math-verify")
    grader = grader_named("math-verify")
    assert grader is not None
    yield grader
    grader.close()


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("\\boxed{\\frac{2}{4}}", "\\frac12", True),
        ("it is $(x+1)^2$", "x^2+2x+1", True),
        ("\\boxed{\\{1,2,3,4\\}}", "\\{1,3\\} \\cup \\{2,4\\}", True),
        ("\\boxed{2^{10}}", "1024", True),
        ("The answer is 42.", "42", True),
        ("\\boxed{(0,1)}", "[0,1]", False),
        ("\\boxed{\\frac{2}{5}}", "\\frac12", False),
        ("no mathematics at all", "\\frac12", False),
        ("\\boxed{" * 300, "\\frac12", False),
        ("\\boxed{\\frac{" + "{" * 30 + "}}", "\\frac12", False),
    ],
)
def test_mathematics(mathematics: Grader, answer: str, expected: str, right: bool) -> None:
    """Equal as expressions: fractions, polynomials, sets, powers; broken LaTeX is wrong."""
    assert mathematics.grade(answer, expected) == right


@pytest.mark.parametrize(
    "payload",
    [
        "__import__('pathlib').Path({!r}).touch()",
        "\\boxed{{__import__('pathlib').Path({!r}).touch()}}",
        "$__import__('pathlib').Path({!r}).touch()$",
        "The final answer is $().__class__.__base__.__subclasses__()$ __import__('pathlib').Path({!r}).touch()",
        "\\boxed{{\\text{{__import__('pathlib').Path({!r}).touch()}}}}",
    ],
)
def test_nothing_that_a_model_wrote_is_run(mathematics: Grader, payload: str, tmp_path: Path) -> None:
    """Python in an answer is text; only LaTeX is read, and never by sympy's own evaluating parser."""
    proof = tmp_path / "ran"
    assert mathematics.grade(payload.format(str(proof)), "\\frac12") == 0.0
    assert not proof.exists()


def test_what_takes_too_long_is_stopped_and_wrong(mathematics: Grader) -> None:
    """An expression that would be computed for hours costs its time limit, and the next one is graded as ever."""
    from dami_router.grading.mathematics import MathVerify

    grader = MathVerify(seconds=2.0)
    assert grader.grade("\\boxed{99999^{99999^{9999}}}", "\\sqrt{2}") == 0.0
    assert grader.overran == 1
    grader._seconds = 60.0  # a fresh worker reads its first expression slowly
    assert grader.grade("\\boxed{\\frac{2}{4}}", "\\frac12") == 1.0
    grader.close()


def test_without_math_verify_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grader is an extra, and says which."""
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FailureError, match=r"dami-router\[math\]"):
        grader_named("math-verify")


def test_grading_imports_nothing_heavy() -> None:
    """sympy is loaded in the worker alone."""
    code = "import sys, dami_router.grading.mathematics; assert not {'sympy', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
