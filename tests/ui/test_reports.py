"""The HTML reports in a real browser, on a phone and on a desk."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.browser import Open, Visit

from dami_router.estimators.training import TrainingSettings
from dami_router.evaluating.comparison import compare, length_of_query
from dami_router.evaluating.report import write_report
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.records import Rollout


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of `dami eval` on a small grid."""
    rows = [
        Rollout(f"q{i}", f"text {'word ' * (i % 7)}{i}", x, float(x >= (i % 3) / 2), 5 + round(50 * x))
        for i in range(60)
        for x in (0.0, 0.5, 1.0)
    ]
    grid = grid_of(rows)
    found = compare(grid, [length_of_query(grid, TrainingSettings(), 3)])
    return write_report(found, tmp_path_factory.mktemp("report"), title="Routing on a small grid")


def broken_lines(visit: Visit) -> list[str]:
    """The figures with an interval that are written on more than one line."""
    return list(
        visit.page.evaluate(
            "[...document.querySelectorAll('span, td:not(.note)')]"
            ".filter((e) => /[–\\[]/.test(e.textContent) && e.getClientRects().length > 1"
            " || e.matches('td') && e.getBoundingClientRect().height > 60).map((e) => e.textContent)"
        )
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_a_report_fits_the_screen(report: Path, visit: Open, width: int, theme: str) -> None:
    """The page never scrolls sideways, no interval wraps, and the whole table can be reached in its own container."""
    page = visit(report.as_uri(), width=width, theme=theme)
    assert page.stays_narrow()
    assert broken_lines(page) == []
    box = page.page.locator(".scroll").first
    reached = box.evaluate("(e) => { e.scrollLeft = 9999; return e.scrollLeft + e.clientWidth >= e.scrollWidth - 1; }")
    assert reached
    last = page.page.locator(".scroll tbody tr:last-child td:last-child").first.bounding_box()
    assert last["x"] + last["width"] <= width
    dark = page.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 25)"
    assert dark is (theme == "dark")
