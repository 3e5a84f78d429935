"""The HTML reports in a real browser, on a phone and on a desk."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.reports import small_report
from support.browser import Open, Visit


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of `dami eval` on a small grid."""
    return small_report(tmp_path_factory.mktemp("report"), "Routing on a small grid")


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
