"""The plots of a report: frontier, λ(q), calibration, and accuracy at each cost."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

from dami_router.errors import FailureError
from dami_router.evaluating.plot_layout import Box, box_of, fix_layout, line_boxes, place_labels, star_shifts
from dami_router.rollouts.grid import Point, dominated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_calibration", "draw_costs", "draw_frontier", "draw_lambdas", "draw_sweep", "render"]

_BLUE, _GREY = "#17638f", "#5b6570"
_COLOURS = ("#c8553d", "#5a8f3c", "#7a4fa3", "#c28e0e", "#3a7d7c", "#8a5a44")
_DPI = 150
_WIDTH, _HEIGHT, _ROW = 6.4, 4.2, 0.21
"""Size of a plot, and of each additional row of its legend, in inches."""
_STAR = 13
"""The size of a star, in points."""
_NAME, _LINE = 60, 80
"""Maximum characters of a name in a legend, and of a row of names."""


def draw_frontier(
    lambdas: Sequence[float], static: Sequence[Point], others: Mapping[str, Point], *, title: str,
    capped: Sequence[Point] = (),
) -> Figure:  # fmt: skip
    """Draw one point for each static λ (dominated ones hollow) and one star for each other way of choosing.

    `capped` are the points of capped thinking, drawn as one curve.

    Bars are 95 % intervals. Stars that would hide each other or a variant are drawn beside their point, with a line
    to it. Raises FailureError if matplotlib is not installed.
    """
    figure, axes = _empty(title, "mean tokens per answer", "accuracy (%)")
    x = [point.tokens.mean for point in static]
    y = [100 * point.accuracy.mean for point in static]
    axes.plot(x, y, color="#9aa5b1", linewidth=1, zorder=1)
    for point, hollow in zip(static, dominated(static), strict=True):
        _mark(axes, point, "o", _BLUE, hollow=hollow)
    coloured = list(zip(others.items(), cycle(_COLOURS), strict=False))
    for (_, point), colour in coloured:
        _spot(axes, point, colour)
    ordered = sorted((point.tokens.mean, 100 * point.accuracy.mean) for point in capped)
    curve = axes.plot([x for x, _ in ordered], [y for _, y in ordered], "s:", color=_GREY, markersize=4, zorder=1)
    axes.margins(x=0.07, y=0.09)
    axes.autoscale_view()
    entries = [(name, _star(colour)) for (name, _), colour in coloured]
    _legend(figure, entries + ([("capped thinking", curve[0])] if capped else []))
    fix_layout(figure)
    scale = figure.dpi / 72
    circles = [box_of(*_pixels(axes, point), 8 * scale, 8 * scale) for point in static]
    stars = _draw_stars(axes, [(point, colour) for (_, point), colour in coloured], circles)
    bars = [_bar(axes, point) for point in static] + line_boxes([_pixels(axes, point) for point in static])
    labels = [(f"λ={lambda_:g}", (px, py)) for lambda_, px, py in zip(lambdas, x, y, strict=True)]
    place_labels(axes, labels, [*circles, *(star for star, _ in stars)], [*bars, *(bar for _, bar in stars)], _BLUE)
    return figure


def draw_sweep(lambdas: Sequence[float], accuracy: Sequence[float], tokens: Sequence[float], *, title: str) -> Figure:
    """Draw variants of which only the means are known, in the style of `draw_frontier`."""
    from dami_router.rollouts.grid import Figure as Mean

    points = [Point(Mean(a, a, a), Mean(t, t, t), 0.0, x) for x, a, t in zip(lambdas, accuracy, tokens, strict=True)]
    return draw_frontier(lambdas, points, {}, title=title)


def draw_lambdas(estimates: Mapping[str, Sequence[float]], *, title: str) -> Figure:
    """Draw a histogram of each estimator's λ(q)."""
    figure, axes = _empty(title, "λ(q)", "queries")
    edges = [i / 20 - 0.025 for i in range(22)]
    for (name, values), colour in zip(estimates.items(), cycle(_COLOURS), strict=False):
        axes.hist(list(values), bins=edges, histtype="stepfilled", alpha=0.45, color=colour, label=name)
    _legend_of(figure, axes)
    return figure


def draw_calibration(
    bins: Sequence[tuple[float, float, float, int]], lambdas: tuple[float, float], *, title: str
) -> Figure:
    """Draw the accuracy of the smallest and the largest λ by bins of rising score: (score, small, large, queries)."""
    figure, axes = _empty(title, "tenth of the queries, by rising score", "accuracy (%)")
    tenths = range(1, len(bins) + 1)
    for column, (lambda_, colour) in enumerate(zip(lambdas, (_BLUE, "#c8553d"), strict=True), 1):
        axes.plot(tenths, [100 * b[column] for b in bins], "o-", color=colour, label=f"λ={lambda_:g}")
    _legend_of(figure, axes)
    return figure


def draw_costs(
    static: Sequence[tuple[float, float]], curves: Mapping[str, Sequence[tuple[float, float]]], *, title: str
) -> Figure:
    """Draw each estimator's accuracy against tokens, with the frontier of random mixing."""
    figure, axes = _empty(title, "mean tokens per answer", "accuracy (%)")
    axes.plot([x for x, _ in static], [100 * y for _, y in static], "--", color="#9aa5b1", label="random mixing")
    for (name, points), colour in zip(curves.items(), cycle(_COLOURS), strict=False):
        ordered = sorted(points)
        axes.plot([x for x, _ in ordered], [100 * y for _, y in ordered], "-", color=colour, label=name)
    _legend_of(figure, axes)
    return figure


def render(figure: Figure, form: Literal["png", "svg"]) -> bytes:
    """Return a figure as the bytes of a PNG or SVG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=_DPI)
    return buffer.getvalue()


def _empty(title: str, x: str, y: str) -> tuple[Figure, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise FailureError("plots need matplotlib", hint="pip install 'dami-router[eval]'") from None
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(figure: Figure, entries: Sequence[tuple[str, Any]]) -> None:
    """Draw the legend below the axes, where it hides nothing."""
    if not entries:
        return
    names = [name if len(name) <= _NAME else f"…{name[1 - _NAME :]}" for name, _ in entries]
    columns = max(1, min(len(names), _LINE // (max(map(len, names)) + 6)))
    figure.set_figheight(_HEIGHT + _ROW * -(-len(names) // columns))
    figure.legend(
        [handle for _, handle in entries], names, loc="outside lower center", ncols=columns, fontsize=9, frameon=False
    )


def _legend_of(figure: Figure, axes: Any) -> None:
    handles, names = axes.get_legend_handles_labels()
    _legend(figure, list(zip(names, handles, strict=True)))


def _star(colour: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], marker="*", markersize=11, color=colour, linestyle="none")


def _draw_stars(axes: Any, points: Sequence[tuple[Point, str]], circles: Sequence[Box]) -> list[tuple[Box, Box]]:
    """Draw a star at or beside each point; returns each star's box and its bar's, in pixels."""
    scale = axes.figure.dpi / 72
    size, room = _STAR * scale, Box(*axes.get_window_extent().extents)
    centres = [_pixels(axes, point) for point, _ in points]
    shifts = star_shifts(centres, size, circles, room)
    for (point, colour), shift in zip(points, shifts, strict=True):
        at = (point.tokens.mean, 100 * point.accuracy.mean)
        axes.annotate(
            "", at, (shift / scale, 0), textcoords="offset points", zorder=2.5,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
        _mark(axes, point, "*", colour, shift=shift)
    return [
        (box_of(x + shift, y, size, size), _bar(axes, point, shift))
        for (point, _), (x, y), shift in zip(points, centres, shifts, strict=True)
    ]


def _pixels(axes: Any, point: Point) -> tuple[float, float]:
    x, y = axes.transData.transform((point.tokens.mean, 100 * point.accuracy.mean))
    return float(x), float(y)


def _bar(axes: Any, point: Point, shift: float = 0.0) -> Box:
    """Return the box of a point's error bar in pixels, shifted right by `shift` pixels."""
    (x, low), (_, high) = axes.transData.transform(
        [(point.tokens.mean, 100 * point.accuracy.low), (point.tokens.mean, 100 * point.accuracy.high)]
    )
    return Box(float(x) + shift - 2, float(low), float(x) + shift + 2, float(high))


def _spot(axes: Any, point: Point, colour: str) -> None:
    """Draw the exact point of a star as a dot, and extend the axes to its interval."""
    x, accuracy = point.tokens.mean, point.accuracy
    axes.plot(x, 100 * accuracy.mean, ".", color=colour, markersize=4, zorder=2)
    axes.update_datalim([(x, 100 * accuracy.low), (x, 100 * accuracy.high)])


def _mark(axes: Any, point: Point, marker: str, colour: str, *, hollow: bool = False, shift: float = 0.0) -> None:
    """Draw a point with its interval, shifted right by `shift` pixels."""
    from matplotlib.transforms import ScaledTranslation

    accuracy = point.accuracy
    error = [[100 * (accuracy.mean - accuracy.low)], [100 * (accuracy.high - accuracy.mean)]]
    star = marker == "*"
    place = axes.transData
    if shift:
        place = place + ScaledTranslation(shift / axes.figure.dpi, 0, axes.figure.dpi_scale_trans)
    axes.errorbar(
        point.tokens.mean, 100 * accuracy.mean, yerr=error, fmt=marker, color=colour, ecolor=colour,
        elinewidth=0.8, markersize=_STAR if star else 6, markerfacecolor="white" if hollow else colour, capsize=2,
        zorder=3 if star else 2,
        transform=place,
    )  # fmt: skip
