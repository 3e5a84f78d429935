"""The frontier picture: accuracy against tokens for every variant, and where routing lands."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from dami_router.errors import FailureError
from dami_router.evaluation import Point, dominated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_frontier", "render"]


def draw_frontier(
    lambdas: Sequence[float], static: Sequence[Point], others: Mapping[str, Point], *, title: str
) -> Figure:
    """Draw one point for each static λ (dominated ones hollow) and one star for each other way of choosing.

    Bars are 95 % intervals. Raises FailureError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise FailureError("plots need matplotlib", hint="pip install 'dami-router[eval]'") from None
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    x = [point.tokens.mean for point in static]
    y = [100 * point.accuracy.mean for point in static]
    axes.plot(x, y, color="#9aa5b1", linewidth=1, zorder=1)
    for lambda_, point, hollow in zip(lambdas, static, dominated(static), strict=True):
        _mark(axes, point, "o", "#1f5f8b", hollow)
        axes.annotate(
            f"λ={lambda_:g}", (point.tokens.mean, 100 * point.accuracy.mean), (5, -12), textcoords="offset points",
            fontsize=8, color="#1f5f8b",
        )  # fmt: skip
    for (name, point), colour in zip(others.items(), ("#c8553d", "#5a8f3c", "#7a4fa3"), strict=False):
        _mark(axes, point, "*", colour, False, name)
    axes.set_xlabel("mean tokens an answer")
    axes.set_ylabel("accuracy (%)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize=8)
    return figure


def render(figure: Figure, form: Literal["png", "svg"]) -> bytes:
    """Return a figure as a file's bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=150)
    return buffer.getvalue()


def _mark(axes, point: Point, marker: str, colour: str, hollow: bool, label: str | None = None) -> None:  # type: ignore[no-untyped-def]
    accuracy = point.accuracy
    error = [[100 * (accuracy.mean - accuracy.low)], [100 * (accuracy.high - accuracy.mean)]]
    axes.errorbar(
        point.tokens.mean, 100 * accuracy.mean, yerr=error, fmt=marker, color=colour, ecolor=colour, elinewidth=0.8,
        markersize=13 if marker == "*" else 6, markerfacecolor="white" if hollow else colour, label=label,
        capsize=2, zorder=3 if marker == "*" else 2,
    )  # fmt: skip
