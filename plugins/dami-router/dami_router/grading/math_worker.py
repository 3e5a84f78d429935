"""The process that compares expressions: JSON lines in, `true` or `false` out.

Only math-verify's LaTeX parser is used. Its parser of plain expressions calls sympy's `parse_expr`,
which evaluates Python, and must never see a model's output.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

__all__ = ["equal", "main"]

_MEMORY = 4 << 30


def main() -> None:
    """Compare until stdin ends."""
    _limit_memory()
    # Output of libraries must not mix with the results.
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
    """Return whether an answer has an expression equal to the expected one; both are text with LaTeX."""
    from math_verify import LatexExtractionConfig, parse, verify

    latex = (LatexExtractionConfig(),)
    try:
        # The parent process enforces the timeout: math-verify's own limits are signals.
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
