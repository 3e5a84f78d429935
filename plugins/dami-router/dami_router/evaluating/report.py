"""The HTML report of `dami eval`: one file, no scripts, no external resources, all text escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from dami_router.errors import FailureError
from dami_router.evaluating.comparison import Comparison, Contender
from dami_router.evaluating.frontier_file import FRONTIER_FILE, FrontierFile, frontier_of
from dami_router.evaluating.html_page import NOTE_BREAK, html_page, html_picture, html_table
from dami_router.evaluating.plots import draw_calibration, draw_costs, draw_frontier, draw_lambdas, render
from dami_router.evaluating.rivals import setting_name
from dami_router.evaluating.scores import frontier
from dami_router.rollouts.grid import Figure, Grid, Point
from dami_router.shared.durable import write_atomically
from dami_router.shared.suggestions import amount

__all__ = ["calibration", "rows", "write_report"]

HEADER = ("choice", "accuracy %", "95 %", "tokens", "mean λ", "over mixing", "note")


def rows(found: Comparison) -> list[tuple[str, ...]]:
    """Return the table: every static variant, every cap, every estimator, the oracle."""
    gone = set(found.dominated)
    table = [
        _row(f"λ={x:g}", point, "dominated" if x in gone else "")
        for x, point in zip(found.grid.lambdas, found.static, strict=True)
    ]
    table += [_row(setting_name(*setting), point, "thinking capped") for setting, point in found.capped]
    for contender, point, metrics in zip(found.contenders, found.points, found.metrics, strict=True):
        table.append(_row(contender.name, point, _note(metrics), _over(metrics)))
    return [*table, _row("oracle", found.oracle, "chosen in hindsight")]


def calibration(grid: Grid, contender: Contender, bins: int = 10) -> list[tuple[float, float, float, int]]:
    """Return, by bins of rising score: mean rank, accuracy at the smallest and the largest λ, number of queries.

    Scores are compared inside folds only.
    """
    rank = contender.ranks
    order = np.argsort(rank, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    smallest, largest = grid.correct[:, 0], grid.correct[:, -1]
    return [(float(rank[p].mean()), float(smallest[p].mean()), float(largest[p].mean()), len(p)) for p in parts]


def write_report(found: Comparison, folder: Path, *, title: str) -> Path:
    """Write `report.html`, its plots as PNG and `frontier.json` into a folder; returns the page's path.

    Raises FailureError if the folder cannot be written or matplotlib is missing.
    """
    pictures = _pictures(found)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (*_, data) in pictures.items():
            write_atomically(folder / f"{name}.png", data)
        write_atomically(folder / FRONTIER_FILE, _frontier(found, title).text().encode())
        write_atomically(folder / "report.html", _page(found, pictures, title).encode())
    except OSError as error:
        raise FailureError(f"{folder}: cannot be written: {error.strerror}") from None
    return folder / "report.html"


def _pictures(found: Comparison) -> dict[str, tuple[str, str, bytes]]:
    """Return each plot's heading, caption and PNG, by file name."""
    grid, stars = found.grid, _stars(found)
    curves = {c.name: k for c, k in zip(found.contenders, found.curves, strict=True)}
    x, y = frontier(grid)
    if found.capped:
        curves["capped thinking"] = tuple((p.tokens.mean, p.accuracy.mean) for _, p in found.capped)
    drawn = {
        "frontier": draw_frontier(
            grid.lambdas,
            found.static,
            stars,
            title="Variants (hollow: dominated) and estimators",
            capped=[point for _, point in found.capped],
        ),
    }
    if found.contenders:
        drawn["lambdas"] = draw_lambdas({c.name: c.lambdas for c in found.contenders}, title="λ(q)")
    drawn["costs"] = draw_costs(list(zip(x, y, strict=True)), curves, title="Accuracy at each cost")
    texts = {
        "frontier": (
            "Frontier",
            "Accuracy against mean tokens. Bars are 95 % bootstrap intervals over queries. A star that would hide"
            " another mark is drawn beside its point, with a line to it.",
        ),
        "lambdas": ("λ of the queries", "The number of queries at each λ."),
        "costs": (
            "Accuracy at each cost",
            "The best random mixture of static variants, and the same mixtures dealt out by each estimator: the queries"
            " with the highest scores get the more expensive variant. A trained estimator is swept over its price"
            " instead. Tokens include what the estimator itself generates.",
        ),
    }
    for number, contender in enumerate(found.contenders):
        ends = grid.lambdas[0], grid.lambdas[-1]
        name = f"calibration-{number}"
        drawn[name] = draw_calibration(calibration(grid, contender), ends, title=f"Calibration: {contender.name}")
        texts[name] = (
            f"Calibration: {contender.name}",
            "At low scores, the smallest λ should be as accurate as the largest. Scores are ranked inside folds.",
        )
    return {name: (*texts[name], render(picture, "png")) for name, picture in drawn.items()}


def _stars(found: Comparison) -> dict[str, Point]:
    return {c.name: p for c, p in zip(found.contenders, found.points, strict=True)} | {"oracle": found.oracle}


def _frontier(found: Comparison, title: str) -> FrontierFile:
    capped = {setting_name(*setting): point for setting, point in found.capped}
    return frontier_of(title, len(found.grid.queries), found.grid.lambdas, found.static, _stars(found), capped)


def _page(found: Comparison, pictures: Mapping[str, tuple[str, str, bytes]], title: str) -> str:
    figures = "".join(
        f"<h2>{escape(heading)}</h2><p>{escape(text)}</p>{html_picture(data, 'image/png', alt=heading)}"
        for heading, text, data in pictures.values()
    )
    gone = ", ".join(f"λ={x:g}" for x in found.dominated) or "none"
    headlines = "".join(f"<p><strong>{escape(text)}</strong></p>" for text in found.headlines)
    return html_page(
        title,
        f"{headlines}<p>{amount(len(found.grid.queries), 'query', 'queries')},"
        f" {amount(len(found.grid.lambdas), 'variant')}. Dominated variants:"
        f" {escape(gone)}."
        " The best static λ and the best cap are chosen on other queries than those they are compared on."
        " No estimator was trained on a query that it is evaluated on. Over mixing: points of accuracy over the best"
        " random mixture of variants at equal mean tokens. Tokens include the estimator's own. Brackets and ranges are"
        " 95 % bootstrap intervals over queries.</p>"
        f"{html_table(HEADER, rows(found), label='Accuracy and tokens', note=True)}{figures}",
    )


def _row(name: str, point: Point, note: str, over: str = "-") -> tuple[str, ...]:
    a = point.accuracy
    return (
        name, f"{100 * a.mean:.1f}", f"{100 * a.low:.1f}–{100 * a.high:.1f}", f"{point.tokens.mean:,.1f}",
        f"{point.mean_lambda:.2f}", over, note,
    )  # fmt: skip


def _over(metrics: Mapping[str, Any]) -> str:
    if metrics["over_random_mixing"] is None:
        return "-"
    return Figure(metrics["over_random_mixing"], *metrics["over_random_mixing_interval"]).in_points()


def _note(metrics: Mapping[str, Any]) -> str:
    gain, share = metrics["over_largest_lambda"], metrics["tokens_of_largest_lambda"]
    parts = [f"{Figure(**gain).in_points()} over the largest λ"]
    parts += [f"{share:.0%} of its tokens"] if share is not None else []
    parts += [f"{metrics['estimator_tokens']:,.1f} of them its own"] if metrics["estimator_tokens"] else []
    parts += _apgr(metrics)
    return NOTE_BREAK.join(parts)


def _apgr(metrics: Mapping[str, Any]) -> list[str]:
    if metrics.get("apgr") is None:
        return []
    low, high = metrics["apgr_interval"]
    without = metrics["folds_without_gap"]
    return [
        f"APGR {metrics['apgr']:.3f} [{low:.3f}, {high:.3f}]",
        *([f"{without} folds without a gap"] if without else []),
    ]
