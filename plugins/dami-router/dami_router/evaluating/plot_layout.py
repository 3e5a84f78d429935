"""Placement of labels and stars in a plot, so that none hides another.

Placement works in pixels, after the figure's layout is fixed. It never moves data: a star that would hide another
mark is drawn beside its point with a line to it, and so is a label far from its point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Box", "box_of", "fix_layout", "line_boxes", "place_labels", "star_shifts"]

_DIRECTIONS = ((1, -1), (1, 1), (-1, -1), (-1, 1), (0, -1), (0, 1), (1, 0), (-1, 0))
_DISTANCES = (4, 8, 13, 19, 26, 34, 44, 56, 70)
_TIED = 8
"""Labels at this nominal distance or more, in points, get a line to their point."""


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Return the area shared with another box, in square pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0.0

    def within(self, other: Box) -> bool:
        """Whether this box lies inside another."""
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.bottom <= self.bottom
            and self.top <= other.top
        )


def fix_layout(figure: Figure) -> None:
    """Lay the figure out once and keep the result, so that pixel positions stay valid."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.autoscale(False)


def box_of(x: float, y: float, width: float, height: float) -> Box:
    """Return the box of a size around a centre."""
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def line_boxes(corners: Sequence[tuple[float, float]], step: float = 8.0) -> list[Box]:
    """Return small boxes along a line through these corners, `step` pixels apart or less."""
    boxes = []
    for (x0, y0), (x1, y1) in pairwise(corners):
        pieces = max(1, math.ceil(math.hypot(x1 - x0, y1 - y0) / step))
        boxes += [box_of(x0 + (x1 - x0) * i / pieces, y0 + (y1 - y0) * i / pieces, 2, 2) for i in range(pieces + 1)]
    return boxes


def star_shifts(points: Sequence[tuple[float, float]], size: float, taken: Sequence[Box], room: Box) -> list[float]:
    """Return how far to move each star sideways so that it hides no other star and no box of `taken`; all in pixels.

    `points` are the stars' centres, `size` is their width and height. If there is no free place inside `room`, the star
    stays on its point.
    """
    placed: list[Box] = []
    shifts = []
    for x, y in points:
        for shift in _sideways(size):
            box = box_of(x + shift, y, size, size)
            if box.within(room) and not any(box.overlap(other) for other in (*placed, *taken)):
                break
        else:
            shift, box = 0.0, box_of(x, y, size, size)
        placed.append(box)
        shifts.append(shift)
    return shifts


def _sideways(size: float) -> Iterator[float]:
    yield 0.0
    for step in range(1, 40):
        yield step * 0.55 * size
        yield -step * 0.55 * size


def place_labels(
    axes: Any, labels: Sequence[tuple[str, tuple[float, float]]], marks: Sequence[Box], bars: Sequence[Box], colour: str
) -> None:
    """Draw each label near its point (in data units), clear of other labels, of marks and, if possible, of bars.

    `marks` and `bars` (also pieces of lines) are boxes in pixels. The layout must be fixed.
    """
    room = Box(*axes.get_window_extent().extents)
    scale = axes.figure.dpi / 72
    placed: list[Box] = []
    for text, point in labels:
        x, y = axes.transData.transform(point)
        drawn = axes.annotate(text, point, (0, 0), textcoords="offset points", fontsize=9, color=colour, zorder=4)
        size = drawn.get_window_extent()
        places = _places(x, y, size.width, size.height, scale)
        hard = [*placed, *marks]
        # Among equal costs the first place wins: the directions are in order of preference.
        distance, box = min(places, key=lambda place, hard=hard: _cost(place, hard, bars, room))  # type: ignore[misc]
        placed.append(box)
        drawn.set_position(((box.left - x) / scale, (box.bottom - y) / scale))
        if distance >= _TIED:
            _tie(axes, (x, y), box, colour)


def _places(x: float, y: float, width: float, height: float, scale: float) -> Iterator[tuple[int, Box]]:
    """Yield the candidate boxes of a label around a point, each with its distance in points."""
    for distance in _DISTANCES:
        for right, up in _DIRECTIONS:
            middle_x = x + right * (distance * scale + width / 2)
            middle_y = y + up * (distance * scale + height / 2)
            yield distance, box_of(middle_x, middle_y, width, height)


def _cost(place: tuple[int, Box], hard: Sequence[Box], soft: Sequence[Box], room: Box) -> float:
    """Return the cost of a place: hiding a mark counts most, then crossing a bar or line, then distance."""
    distance, box = place
    hidden = sum(box.overlap(other) > 0 for other in hard) + (not box.within(room))
    return 1e6 * hidden + 25.0 * sum(box.overlap(other) > 0 for other in soft) + distance


def _tie(axes: Any, point: tuple[float, float], box: Box, colour: str) -> None:
    from matplotlib.lines import Line2D

    nearest = (min(max(point[0], box.left), box.right), min(max(point[1], box.bottom), box.top))
    (x0, y0), (x1, y1) = axes.transData.inverted().transform([point, nearest])
    axes.add_line(Line2D([x0, x1], [y0, y1], color=colour, linewidth=0.6, alpha=0.7, zorder=1.5))
