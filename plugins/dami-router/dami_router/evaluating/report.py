"""The HTML report of `dami eval`: one file, no scripts, nothing fetched, every text escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from dami_router.errors import FailureError
from dami_router.evaluating.comparison import Comparison, Contender
from dami_router.evaluating.plots import draw_calibration, draw_costs, draw_frontier, draw_lambdas, render
from dami_router.evaluating.scores import frontier
from dami_router.rollouts.grid import Grid, Point

__all__ = ["calibration", "rows", "write_report"]

HEADER = ("choice", "accuracy %", "95 %", "tokens", "mean λ", "over mixing", "note")

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;font-size:14px}"
    "td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child,td:last-child{text-align:left}img{max-width:100%}h2{margin-top:2rem}"
)


def rows(found: Comparison) -> list[tuple[str, ...]]:
    """Return the table: every static variant, every estimator, the oracle."""
    gone = set(found.dominated)
    table = [
        _row(f"λ={x:g}", point, "dominated" if x in gone else "")
        for x, point in zip(found.grid.lambdas, found.static, strict=True)
    ]
    for contender, point, metrics in zip(found.contenders, found.points, found.metrics, strict=True):
        table.append(_row(contender.name, point, _note(metrics), metrics["over_random_mixing"]))
    return [*table, _row("oracle", found.oracle, "chosen in hindsight")]


def calibration(grid: Grid, contender: Contender, bins: int = 10) -> list[tuple[float, float, float, int]]:
    """Return for bins of the queries, by rising score: mean score, accuracy at smallest and largest λ, queries."""
    order = np.argsort(contender.score, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    smallest, largest = grid.correct[:, 0], grid.correct[:, -1]
    return [
        (float(contender.score[p].mean()), float(smallest[p].mean()), float(largest[p].mean()), len(p)) for p in parts
    ]


def write_report(found: Comparison, folder: Path, *, title: str) -> Path:
    """Write `report.html` and its pictures as PNG into a folder; returns the page.

    Raises FailureError where the folder cannot be written or matplotlib is missing.
    """
    pictures = _pictures(found)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (_, data) in pictures.items():
            _write(folder / f"{name}.png", data)
        _write(folder / "report.html", _page(found, pictures, title).encode())
    except OSError as error:
        raise FailureError(f"{folder}: cannot be written: {error.strerror}") from None
    return folder / "report.html"


def _pictures(found: Comparison) -> dict[str, tuple[str, bytes]]:
    grid = found.grid
    stars = {c.name: p for c, p in zip(found.contenders, found.points, strict=True)} | {"oracle": found.oracle}
    curves = {c.name: [(x, y) for _, x, y in k] for c, k in zip(found.contenders, found.curves, strict=True)}
    x, y = frontier(grid)
    drawn = {
        "frontier": draw_frontier(
            grid.lambdas, found.static, stars, title="Variants (hollow: dominated) and estimators"
        ),
        "lambdas": draw_lambdas({c.name: c.lambdas for c in found.contenders}, title="λ(q)"),
        "costs": draw_costs(list(zip(x, y, strict=True)), curves, title="What each cost buys: λ(q) shifted"),
    }
    texts = {
        "frontier": "Accuracy against mean tokens. Bars are 95 % bootstrap intervals over queries.",
        "lambdas": "How many queries get which λ.",
        "costs": "Each estimator's λ(q), shifted from −1 to 1, against the best random mixture of static variants.",
    }
    for number, contender in enumerate(found.contenders):
        ends = grid.lambdas[0], grid.lambdas[-1]
        name = f"calibration-{number}"
        drawn[name] = draw_calibration(calibration(grid, contender), ends, title=f"Calibration: {contender.name}")
        texts[name] = f"{contender.name}: where its score is low, the smallest λ should do as well as the largest."
    return {name: (texts[name], render(picture, "png")) for name, picture in drawn.items()}


def _page(found: Comparison, pictures: Mapping[str, tuple[str, bytes]], title: str) -> str:
    table = "".join(_cells("td", row) for row in rows(found))
    figures = "".join(
        f"<h2>{escape(name.partition('-')[0].capitalize())}</h2><p>{escape(text)}</p>"
        f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        for name, (text, data) in pictures.items()
    )
    gone = ", ".join(f"λ={x:g}" for x in found.dominated) or "none"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f"<h1>{escape(title)}</h1><p>{len(found.grid.queries)} queries, {len(found.grid.lambdas)} variants."
        f" Dominated variants: {gone}. No query was used to train what answers for it.</p>"
        f"<table>{_cells('th', HEADER)}{table}</table>{figures}</html>\n"
    )


def _row(name: str, point: Point, note: str, over: float | None = None) -> tuple[str, ...]:
    a = point.accuracy
    return (
        name, f"{100 * a.mean:.1f}", f"{100 * a.low:.1f}-{100 * a.high:.1f}", f"{point.tokens.mean:.1f}",
        f"{point.mean_lambda:.2f}", "-" if over is None else f"{100 * over:+.1f}", note,
    )  # fmt: skip


def _note(metrics: Mapping[str, Any]) -> str:
    gain, share = metrics["over_largest_lambda"], metrics["tokens_of_largest_lambda"]
    said = [f"{100 * gain['mean']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}] over the largest λ"]
    said += [f"{share:.0%} of its tokens"] if share is not None else []
    said += [f"APGR {metrics['apgr']:.3f}"] if metrics.get("apgr") is not None else []
    return ", ".join(said)


def _cells(tag: str, row: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"


def _write(file: Path, data: bytes) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_bytes(data)
    partial.replace(file)
