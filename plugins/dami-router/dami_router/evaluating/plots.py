"""The report's pictures: the frontier, λ(q), calibration, and what each cost buys."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

from dami_router.errors import FailureError
from dami_router.rollouts.grid import Point, dominated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_calibration", "draw_costs", "draw_frontier", "draw_lambdas", "draw_sweep", "render"]

_COLOURS = ("#c8553d", "#5a8f3c", "#7a4fa3", "#c28e0e", "#3a7d7c", "#8a5a44")


def draw_frontier(
    lambdas: Sequence[float], static: Sequence[Point], others: Mapping[str, Point], *, title: str
) -> Figure:
    """Draw one point for each static λ (dominated ones hollow) and one star for each other way of choosing.

    Bars are 95 % intervals. Raises FailureError where matplotlib is not installed.
    """
    figure, axes = _empty(title, "mean tokens an answer", "accuracy (%)")
    x = [point.tokens.mean for point in static]
    y = [100 * point.accuracy.mean for point in static]
    axes.plot(x, y, color="#9aa5b1", linewidth=1, zorder=1)
    for lambda_, point, hollow in zip(lambdas, static, dominated(static), strict=True):
        _mark(axes, point, "o", "#1f5f8b", hollow)
        axes.annotate(
            f"λ={lambda_:g}", (point.tokens.mean, 100 * point.accuracy.mean), (5, -12), textcoords="offset points",
            fontsize=8, color="#1f5f8b",
        )  # fmt: skip
    for (name, point), colour in zip(others.items(), cycle(_COLOURS), strict=False):
        _mark(axes, point, "*", colour, False, name)
    if others:
        axes.legend(loc="lower right", fontsize=8)
    return figure


def draw_sweep(lambdas: Sequence[float], accuracy: Sequence[float], tokens: Sequence[float], *, title: str) -> Figure:
    """Draw variants of which only the means are known, as `draw_frontier` draws them: dominated ones hollow."""
    from dami_router.rollouts.grid import Figure as Mean

    points = [Point(Mean(a, a, a), Mean(t, t, t), 0.0, x) for x, a, t in zip(lambdas, accuracy, tokens, strict=True)]
    return draw_frontier(lambdas, points, {}, title=title)


def draw_lambdas(estimates: Mapping[str, Sequence[float]], *, title: str) -> Figure:
    """Draw how many queries each estimator gives which λ."""
    figure, axes = _empty(title, "λ(q)", "queries")
    edges = [i / 20 - 0.025 for i in range(22)]
    for (name, values), colour in zip(estimates.items(), cycle(_COLOURS), strict=False):
        axes.hist(list(values), bins=edges, histtype="stepfilled", alpha=0.45, color=colour, label=name)
    axes.legend(fontsize=8)
    return figure


def draw_calibration(
    bins: Sequence[tuple[float, float, float, int]], lambdas: tuple[float, float], *, title: str
) -> Figure:
    """Draw, for bins of rising score, the accuracy of smallest and largest λ: (score, small, large, queries)."""
    figure, axes = _empty(title, "tenth of the queries, by rising score", "accuracy (%)")
    tenths = range(1, len(bins) + 1)
    for column, (lambda_, colour) in enumerate(zip(lambdas, ("#1f5f8b", "#c8553d"), strict=True), 1):
        axes.plot(tenths, [100 * b[column] for b in bins], "o-", color=colour, label=f"λ={lambda_:g}")
    axes.legend(fontsize=8)
    return figure


def draw_costs(
    static: Sequence[tuple[float, float]], curves: Mapping[str, Sequence[tuple[float, float]]], *, title: str
) -> Figure:
    """Draw accuracy against tokens along each estimator's shifts, over the frontier of random mixing."""
    figure, axes = _empty(title, "mean tokens an answer", "accuracy (%)")
    axes.plot([x for x, _ in static], [100 * y for _, y in static], "--", color="#9aa5b1", label="random mixing")
    for (name, points), colour in zip(curves.items(), cycle(_COLOURS), strict=False):
        ordered = sorted(points)
        axes.plot([x for x, _ in ordered], [100 * y for _, y in ordered], "-", color=colour, label=name)
    axes.legend(fontsize=8)
    return figure


def render(figure: Figure, form: Literal["png", "svg"]) -> bytes:
    """Return a figure as a file's bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=150)
    return buffer.getvalue()


def _empty(title: str, x: str, y: str) -> tuple[Figure, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise FailureError("plots need matplotlib", hint="pip install 'dami-router[eval]'") from None
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    return figure, axes


def _mark(axes, point: Point, marker: str, colour: str, hollow: bool, label: str | None = None) -> None:  # type: ignore[no-untyped-def]
    accuracy = point.accuracy
    error = [[100 * (accuracy.mean - accuracy.low)], [100 * (accuracy.high - accuracy.mean)]]
    axes.errorbar(
        point.tokens.mean, 100 * accuracy.mean, yerr=error, fmt=marker, color=colour, ecolor=colour, elinewidth=0.8,
        markersize=13 if marker == "*" else 6, markerfacecolor="white" if hollow else colour, label=label,
        capsize=2, zorder=3 if marker == "*" else 2,
    )  # fmt: skip
