"""Reading `name(1, 2, key=3)`: how schedules and paths are written in a recipe."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from dami_router.errors import MisuseError
from dami_router.shared.suggestions import did_you_mean, listed

__all__ = ["build", "usage"]

_MAX_LENGTH = 200

Shape = TypeVar("Shape")


def build(text: str, known: Mapping[str, type[Shape]], *, what: str) -> Shape:
    """Build the dataclass that `text` names, with its numeric arguments.

    `known` maps each name to a dataclass whose fields are numbers. Raises MisuseError for
    anything else: unknown names (with the nearest known one), wrong arguments, NaN.
    """
    name, positional, keywords = _call(text, what)
    if name not in known:
        near = did_you_mean(name, known)
        hint = f"did you mean `{usage(near, known[near])}`?" if near else f"known: {_usages(known)}"
        raise MisuseError(f"{what}: unknown name `{name}` in `{text}`", hint=hint)
    shape = known[name]
    form = usage(name, shape)
    slots = [field.name for field in fields(shape)]  # type: ignore[arg-type]
    if len(positional) > len(slots):
        raise MisuseError(f"{what}: too many arguments in `{text}`; expected {form}")
    arguments = dict(zip(slots, positional, strict=False))
    for key, value in keywords:
        if key not in slots or key in arguments:
            problem = "given twice" if key in arguments else "unknown"
            raise MisuseError(f"{what}: argument `{key}` {problem} in `{text}`; expected {form}")
        arguments[key] = value
    needed = [f.name for f in fields(shape) if f.default is MISSING]  # type: ignore[arg-type]
    if missing := [slot for slot in needed if slot not in arguments]:
        raise MisuseError(f"{what}: `{text}` lacks {listed(missing)}; expected {form}")
    return shape(**arguments)


def usage(name: str, shape: type[Any]) -> str:
    """Write how a shape is called: `sigmoid(a, b, center=0.5, width=0.1)`."""
    parts = [f.name if f.default is MISSING else f"{f.name}={f.default:g}" for f in fields(shape)]
    return f"{name}({', '.join(parts)})" if parts else name


def _usages(known: Mapping[str, type[Any]]) -> str:
    return ", ".join(usage(name, shape) for name, shape in known.items())


def _call(text: str, what: str) -> tuple[str, list[float], list[tuple[str, float]]]:
    cut = "(" in text and ")" not in text
    problem = MisuseError(
        f"{what}: cannot read `{text[:_MAX_LENGTH]}`; expected a form such as name(0, 1)",
        hint="inside YAML's [ ] or { }, put it in quotes" if cut else None,
    )
    if len(text) > _MAX_LENGTH:
        raise problem
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise problem from None
    if isinstance(node, ast.Name):
        return node.id, [], []
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise problem
    keywords = [(k.arg, _number(k.value, text, what)) for k in node.keywords if k.arg is not None]
    if len(keywords) != len(node.keywords):
        raise problem
    return node.func.id, [_number(a, text, what) for a in node.args], keywords


def _number(node: ast.expr, text: str, what: str) -> float:
    sign = 1.0
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        sign = -1.0 if isinstance(node.op, ast.USub) else 1.0
        node = node.operand
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        value = sign * float(node.value)
        if math.isfinite(value):
            return value
    raise MisuseError(f"{what}: expected numbers between the brackets of `{text}`")
