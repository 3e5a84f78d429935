"""The process that compares expressions: JSON lines in, `true` or `false` out.

Only math-verify's LaTeX reader is used. Its reader of plain expressions ends in sympy's `parse_expr`,
which evaluates Python, and must never see what a model wrote.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

__all__ = ["equal", "main"]

_MEMORY = 4 << 30


def main() -> None:
    """Answer until stdin ends."""
    _limit_memory()
    # Whatever a library prints must not be taken for an answer.
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    import math_verify  # noqa: F401 - before the first time limit runs

    out.write("ready\n")
    out.flush()
    for line in sys.stdin.buffer:
        question: dict[str, Any] = json.loads(line)
        out.write("true\n" if equal(question["expected"], question["answer"]) else "false\n")
        out.flush()


def equal(expected: str, answer: str) -> bool:
    """Whether an answer holds an expression equal to the expected one; both as text with LaTeX in it."""
    from math_verify import LatexExtractionConfig, parse, verify

    latex = (LatexExtractionConfig(),)
    try:
        # Who started this process keeps the time: math-verify's own limits are signals.
        gold, given = (parse(text, extraction_config=latex, parsing_timeout=None) for text in (expected, answer))
        return bool(verify(gold, given, timeout_seconds=None))
    except (MemoryError, RecursionError):
        return False


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


if __name__ == "__main__":
    main()
