"""The lab's task: chains of one-digit arithmetic, their answers in three formats, and a strict grader.

A chain such as ``3+7-2>5=`` is computed left to right modulo 10 with four operators: ``+``, ``-``, ``>`` (the larger
of two) and ``<`` (the smaller of two). It is small enough for a 215,000-parameter model to learn in minutes, and hard
enough that a model that answers at once is often wrong, and one that works step by step is right.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, get_args

__all__ = [
    "DIGITS",
    "OPERATORS",
    "THINK_CLOSE",
    "THINK_OPEN",
    "AnswerFormat",
    "evaluate",
    "format_answer",
    "grade",
    "has_think_block",
    "length",
    "make_chain",
    "steps",
]

AnswerFormat = Literal["direct", "think", "check"]

DIGITS = "0123456789"
THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"

_APPLY: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: (a + b) % 10,
    "-": lambda a, b: (a - b) % 10,
    ">": max,
    "<": min,
}
OPERATORS = "".join(_APPLY)

_CHAIN = re.compile(rf"[0-9](?:[{re.escape(OPERATORS)}][0-9])+=")
_ANSWER = re.compile(rf"(?:{THINK_OPEN}(?:(?!{THINK_OPEN}|{THINK_CLOSE}).)*{THINK_CLOSE})?([0-9])", re.DOTALL)


def make_chain(digits: str, operators: str) -> str:
    """Return the chain of these operands and operators; ``ValueError`` unless there is one more operand."""
    if len(digits) != len(operators) + 1:
        raise ValueError(f"a chain of {len(operators)} operators takes {len(operators) + 1} digits, got {len(digits)}")
    chain = digits[0] + "".join(o + d for o, d in zip(operators, digits[1:], strict=True)) + "="
    return _checked(chain)


def length(chain: str) -> int:
    """Return the number of operations n ≥ 1 of a chain; ``ValueError`` for text that is not a chain."""
    return (len(_checked(chain)) - 2) // 2


def steps(chain: str) -> list[tuple[int, str, int, int]]:
    """Return the steps of a chain, left to right: ``(value so far, operator, operand, new value)`` per operation."""
    _checked(chain)
    value, worked = int(chain[0]), []
    for operator, digit in zip(chain[1:-1:2], chain[2:-1:2], strict=True):
        result = _APPLY[operator](value, int(digit))
        worked.append((value, operator, int(digit), result))
        value = result
    return worked


def evaluate(chain: str) -> str:
    """Return the correct answer to a chain, one digit as text; ``ValueError`` for text that is not a chain."""
    return str(steps(chain)[-1][3])


def format_answer(chain: str, style: AnswerFormat) -> str:
    """Return the correct answer to a chain in a training format, without the end-of-text token.

    ``direct`` is the digit; ``think`` shows the steps once; ``check`` shows them twice.
    """
    if style not in get_args(AnswerFormat):
        raise ValueError(f"unknown answer format {style!r}: expected one of {', '.join(get_args(AnswerFormat))}")
    if style == "direct":
        return evaluate(chain)
    working = ";".join(f"{a}{operator}{b}={c}" for a, operator, b, c in steps(chain))
    if style == "check":
        working = f"{working}|{working}"
    return f"{THINK_OPEN}{working}{THINK_CLOSE}{evaluate(chain)}"


def grade(answer: str, expected: str, *, finished: bool = True) -> bool:
    """Return whether an answer is exactly the expected digit, alone or directly after one think block.

    ``finished``: whether the model ended its text itself; an answer that was cut off is wrong.
    The content of the think block is not graded.
    """
    match = _ANSWER.fullmatch(answer)
    return finished and match is not None and match.group(1) == expected


def has_think_block(answer: str) -> bool:
    """Return whether an answer opens or closes a think block anywhere."""
    return THINK_OPEN in answer or THINK_CLOSE in answer


def _checked(chain: str) -> str:
    if not _CHAIN.fullmatch(chain):
        raise ValueError(
            f"not a chain: {chain!r}; expected digits joined by {' '.join(OPERATORS)}"
            " and ended by '=', as in '3+7-2>5='"
        )
    return chain
