"""The layout of reports: labels, stars and legends that hide nothing, and tables that a phone can show."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from fakes.reports import small_report

from dami_router.evaluating.html_page import html_page, html_table, html_text
from dami_router.evaluating.plot_layout import Box, box_of, line_boxes, star_shifts
from dami_router.evaluating.plots import draw_costs, draw_frontier, draw_lambdas
from dami_router.rollouts.grid import Figure, Point

# Accuracy in % and tokens of eleven variants, those at both ends close together.
SWEEP = (
    (0.0, 60.4, 3.9), (0.1, 59.6, 4.4), (0.2, 61.0, 11.3), (0.3, 65.0, 16.2), (0.4, 69.3, 22.7), (0.5, 73.4, 28.5),
    (0.6, 76.2, 30.9), (0.7, 77.3, 34.6), (0.8, 78.0, 47.5), (0.9, 77.5, 64.4), (1.0, 77.2, 65.2),
)  # fmt: skip
LONG = "/home/someone/experiments/2026-11/routing/estimators/preference-with-embeddings-of-a-served-model"


def point(accuracy: float, tokens: float, width: float = 0.02) -> Point:
    return Point(Figure(accuracy, accuracy - width, accuracy + width), Figure(tokens, tokens, tokens), 0.5, 0.5)


def drawn(sweep: tuple[tuple[float, float, float], ...], stars: dict[str, Point]) -> Any:
    lambdas = [x for x, *_ in sweep]
    figure = draw_frontier(lambdas, [point(a / 100, t) for _, a, t in sweep], stars, title="A sweep")
    figure.draw_without_rendering()
    return figure


def pixels(artist: Any) -> Box:
    return Box(*artist.get_window_extent().extents)


def marks(figure: Any, marker: str, size: float) -> list[Box]:
    """The boxes of all marks of a kind, in pixels; `size` is in points."""
    found = []
    for line in figure.axes[0].lines:
        if line.get_marker() == marker:
            x, y = line.get_transform().transform(line.get_xydata())[0]
            found.append(box_of(x, y, size * figure.dpi / 72, size * figure.dpi / 72))
    return found


def labels(figure: Any) -> list[Box]:
    return [pixels(text) for text in figure.axes[0].texts if text.get_text()]


def hidden(boxes: list[Box]) -> list[tuple[Box, Box]]:
    return [(a, b) for a, b in combinations(boxes, 2) if a.overlap(b) > 0]


STARS = {
    "none": {},
    "apart": {"preference": point(0.846, 22), "oracle": point(0.903, 12.9)},
    "on variants": {"first": point(0.604, 3.9), "last": point(0.772, 65.2), "middle": point(0.773, 34.6)},
    "all the same": {f"estimator {i}": point(0.8, 20) for i in range(5)},
    "nearly the same": {LONG: point(0.772, 35.0), f"{LONG}-2": point(0.7721, 35.2), "oracle": point(0.773, 34.9)},
}


@pytest.mark.parametrize("stars", STARS.values(), ids=STARS.keys())
def test_nothing_on_the_frontier_hides_another_thing(stars: dict[str, Point]) -> None:
    """Labels cover no label, circle or star; stars cover no star and no circle; all stay inside the axes."""
    figure = drawn(SWEEP, stars)
    names, circles, shown = labels(figure), marks(figure, "o", 6), marks(figure, "*", 13)
    assert (len(names), len(circles), len(shown)) == (len(SWEEP), len(SWEEP), len(stars))
    assert hidden(names) == []
    assert hidden(shown) == []
    assert not [1 for a in names for b in (*circles, *shown) if a.overlap(b)]
    assert not [1 for a in shown for b in circles if a.overlap(b)]
    axes = pixels(figure.axes[0])
    assert all(box.within(axes) for box in (*names, *shown))


def test_labels_leave_the_line_between_variants_free() -> None:
    """Where there is room, no label is written across the line that connects the variants."""
    figure = drawn(SWEEP, {})
    line = figure.axes[0].transData.transform([(t, a) for _, a, t in SWEEP])
    assert not [1 for label in labels(figure) for piece in line_boxes(line) if label.overlap(piece)]


@pytest.mark.parametrize("seed", range(8))
def test_labels_of_any_sweep_are_apart(seed: int) -> None:
    """Eleven variants crowded at random, some on the same point, have eleven readable labels."""
    rng = np.random.default_rng(seed)
    crowded = [(float(a), float(t)) for a, t in zip(rng.normal(70, 4, 11), rng.gamma(1.5, 8, 11), strict=True)]
    crowded[3] = crowded[7]
    figure = drawn(tuple((i / 10, a, t) for i, (a, t) in enumerate(crowded)), {"estimator": point(0.7, crowded[3][1])})
    assert hidden(labels(figure)) == []
    assert not [1 for a in labels(figure) for b in marks(figure, "o", 6) if a.overlap(b)]


def test_a_moved_star_keeps_its_accuracy_and_its_point() -> None:
    """Of two equal stars both have the same height, one stands beside the point, and a dot marks the point."""
    figure = drawn(SWEEP, {"a": point(0.85, 20), "b": point(0.85, 20)})
    first, second = marks(figure, "*", 13)
    assert first.bottom == pytest.approx(second.bottom)
    assert first.left != pytest.approx(second.left)
    dots = marks(figure, ".", 4)
    assert len(dots) == 2
    assert dots[0] == pytest.approx(dots[1])
    assert dots[0].within(first)


def test_whole_intervals_are_in_the_picture() -> None:
    """The axes reach beyond the ends of all intervals, of variants and of stars."""
    static = [point(0.3, 1, 0.2), point(0.5, 9, 0.01)]
    axes = draw_frontier([0.0, 1.0], static, {"star": point(0.9, 5, 0.09)}, title="x").axes[0]
    low, high = axes.get_ylim()
    assert low < 10
    assert high > 99


def test_a_star_without_a_free_place_stays_on_its_point() -> None:
    """In a room with no free place nothing moves: a wrong place would be worse than a hidden star."""
    assert star_shifts([(5, 5), (5, 5)], 10, [], Box(0, 0, 10, 10)) == [0.0, 0.0]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_legends_stand_below_the_axes_and_inside_the_picture(count: int) -> None:
    """Whatever the number and length of names, the legend covers no data and is not cut off."""
    names = [f"{LONG}-{i}" if i % 2 else f"estimator {i}" for i in range(count)]
    figures = [
        drawn(SWEEP, {name: point(0.8, 20) for name in names}),
        draw_lambdas({name: [0.1, 0.5] for name in names}, title="λ(q)"),
        draw_costs([(1, 0.5), (2, 0.6)], {name: [(1, 0.5), (2, 0.7)] for name in names}, title="costs"),
    ]
    for figure in figures:
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = pixels(legend)
        assert box.within(Box(0, 0, *figure.bbox.size))
        assert box.top <= figure.axes[0].get_tightbbox().y0
        assert figure.axes[0].get_window_extent().height > 1.5 * figure.dpi


class Cells(HTMLParser):
    """Collects cells with their class, and whether each table is inside a scroll container."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[tuple[str, str]] = []
        self.scrolled: list[bool] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "div":
            self._open.append(given.get("class") or "")
        elif tag == "table":
            self.scrolled.append(self._open[-1:] == ["scroll"])
        elif tag in ("td", "th"):
            self.cells.append((given.get("class") or "", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "div":
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self.cells:
            kind, text = self.cells[-1]
            self.cells[-1] = (kind, text + data)


def rule(page: str, selector: str) -> str:
    """The declarations of a CSS selector, without spaces around signs."""
    dense = re.sub(r"\s*([{}:;,>])\s*", r"\1", re.sub(r"/\*.*?\*/", "", page, flags=re.S))
    found = re.search(rf"(?:^|[}}>]){re.escape(selector)}{{([^}}]*)}}", dense)
    assert found, selector
    return found[1]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report on a small grid, with one estimator under a long name."""
    return small_report(tmp_path_factory.mktemp("report"), "A <report>").read_text()


def test_intervals_do_not_wrap(page: str) -> None:
    """Cells are set not to wrap; in a note, each part with its interval is one unbreakable span."""
    cells = Cells()
    cells.feed(page)
    plain = [text for kind, text in cells.cells if "–" in text and kind == ""]
    assert len(plain) == 5
    assert all(re.fullmatch(r"\d+\.\d–\d+\.\d", text) for text in plain)
    assert "white-space:nowrap" in rule(page, "th,td")
    assert "white-space:nowrap" in rule(page, "span")
    notes = re.findall(r'<td class="note">(.+?)</td>', page)
    assert any(re.match(r"<span>[+-]\d+\.\d \[[^\]<]*\] over the largest λ</span>; <span>", note) for note in notes)
    assert html_text("gain +1.5 [-1.5, +4.5], a < b") == "<p>gain <span>+1.5 [-1.5, +4.5]</span>, a &lt; b</p>"


def test_a_phone_shows_the_whole_table(page: str) -> None:
    """The page takes the screen's width, and a table that is wider scrolls inside its own container."""
    cells = Cells()
    cells.feed(page)
    assert cells.scrolled == [True]
    assert 'name="viewport" content="width=device-width' in page
    assert "overflow-x:auto" in rule(page, ".scroll")
    assert "overflow-x:auto" in rule(page, ".picture")
    assert "width:100%" in rule(page, "img")
    assert "A &lt;report>" in page or "A &lt;report&gt;" in page


def test_cells_of_a_table_are_escaped() -> None:
    """Names and notes are text, also where they look like HTML."""
    page = html_page("t", html_table(("name", "note"), [("<b>", "a; <i>")], label="<x>", note=True))
    assert "<b>" not in page
    assert "<i>" not in page
    assert "<span>a</span>; <span>&lt;i&gt;</span>" in page


def test_the_page_is_one_file(page: str) -> None:
    """Nothing is fetched and nothing is run."""
    assert not any(word in page for word in ("http://", "https://", "<script", "url("))
