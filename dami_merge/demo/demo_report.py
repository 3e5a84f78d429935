"""The demo's table, examples and HTML page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from dami_merge.demo.running import Demo, Routed
from dami_router.evaluating.plots import draw_frontier, render
from dami_router.output import table
from dami_router.rollouts.grid import Point, dominated
from dami_router.shared.durable import write_atomically

__all__ = ["as_dict", "as_text", "examples", "write_report"]

_HEADER = ("", "accuracy", "95 % interval", "tokens", "thinks", "mean λ")


def as_text(demo: Demo) -> str:
    """Return the table of static variants, the routed point and the oracle, and three queries' stories."""
    return "\n\n".join([table(_HEADER, _rows(demo)), _verdict(demo), *map(_story, examples(demo))])


def as_dict(demo: Demo) -> dict[str, Any]:
    """Return every figure for JSON."""
    hollow = dominated(demo.static)
    return {
        "static": [
            {"lambda": x, **point.as_dict(), "dominated": flag}
            for x, point, flag in zip(demo.lambdas, demo.static, hollow, strict=True)
        ],
        "routed": demo.routed.as_dict(),
        "exact": demo.exact.as_dict(),
        "oracle": demo.oracle.as_dict(),
        "queries": len(demo.queries),
        "calibration_queries": demo.calibration,
        "wanted_mean_lambda": demo.mean_lambda,
        "max_lambda": demo.max_lambda,
        "tokens_of_thinking": demo.routed.tokens.mean / demo.static[-1].tokens.mean,
        "accuracy_over_thinking": demo.routed.accuracy.mean - demo.static[-1].accuracy.mean,
    }


def write_report(demo: Demo, folder: Path) -> list[Path]:
    """Write `report.html` and `frontier.png` into a folder and return their paths."""
    figure = draw_frontier(
        demo.lambdas, demo.static,
        {"routed, zero-shot": demo.routed, "exactly λ(q), live": demo.exact, "oracle": demo.oracle},
        title=f"The tiny pair, {len(demo.queries)} held-out queries",
    )  # fmt: skip
    files = {"frontier.png": render(figure, "png"), "report.html": _page(demo, render(figure, "svg")).encode()}
    for name, data in files.items():
        write_atomically(folder / name, data)
    return [folder / name for name in files]


def examples(demo: Demo) -> list[Routed]:
    """Choose queries that show what routing does: left to Instruct, given thought, and one that it got wrong."""
    right = [r for r in demo.queries if r.rollout.correct]
    easy = [r for r in right if r.lambda_ == demo.lambdas[0]]
    hard = [r for r in right if r.lambda_ > demo.lambdas[0] and not r.instruct.correct]
    wrong = [r for r in demo.queries if not r.rollout.correct and r.thinking.correct]
    return [max(found, key=_telling) for found in (easy, hard, wrong) if found]


def _telling(routed: Routed) -> tuple[int, str]:
    # Long queries tell more; the text settles ties, so that the same run shows the same ones.
    return len(routed.query.text), routed.query.text


def _rows(demo: Demo) -> list[tuple[str, ...]]:
    hollow = dominated(demo.static)
    rows = [
        _row(f"λ = {x:g}" + (" (dominated)" if flag else ""), point)
        for x, point, flag in zip(demo.lambdas, demo.static, hollow, strict=True)
    ]
    routed = [_row("routed, zero-shot", demo.routed), _row("exactly λ(q), live", demo.exact)]
    return [*rows, *routed, _row("oracle", demo.oracle)]


def _row(name: str, point: Point) -> tuple[str, ...]:
    accuracy = point.accuracy
    return (
        name, f"{accuracy.mean:.1%}", f"{accuracy.low:.1%} – {accuracy.high:.1%}", f"{point.tokens.mean:.1f}",
        f"{point.think_share:.0%}", f"{point.mean_lambda:.2f}",
    )  # fmt: skip


def _verdict(demo: Demo) -> str:
    thinking = demo.static[-1]
    gain = 100 * (demo.routed.accuracy.mean - thinking.accuracy.mean)
    share = demo.routed.tokens.mean / thinking.tokens.mean
    within = [point.accuracy.mean for point in demo.static if point.tokens.mean <= demo.routed.tokens.mean]
    over = 100 * (demo.routed.accuracy.mean - max(within, default=0.0))
    return (
        f"Routed against the best single λ of no more tokens: {over:+.1f} points of accuracy.\n"
        f"Routed against the Thinking variant for every query: {gain:+.1f} points of accuracy at {share:.0%} of its"
        f" tokens.\nλ(q) came from the Instruct variant's confidence in its own direct answer; no labels were used"
        f" ({demo.calibration} other queries set the scale; wanted mean λ {demo.mean_lambda:g},"
        f" largest {demo.max_lambda:g}).\nZero-shot takes the nearest variant of the table; exactly λ(q) was answered"
        " by the live engine: two endpoints in memory, and every query of a batch at its own λ."
    )


def _story(routed: Routed) -> str:
    answers = [
        ("λ=0", routed.instruct), (f"routed, λ={routed.lambda_:g}", routed.rollout), ("λ=1", routed.thinking)
    ]  # fmt: skip
    question = f"{routed.query.text}{routed.query.expected}"
    lines = [f"{question}   (confidence {routed.confidence:.2f} → λ(q) = {routed.estimate:.2f})"]
    for name, rollout in answers:
        mark = "right" if rollout.correct else "wrong"
        lines.append(f"  {name:<15} {mark}, {rollout.tokens:>3} tokens: {_short(rollout.answer or '')}")
    return "\n".join(lines)


def _short(answer: str) -> str:
    return answer if len(answer) <= 70 else f"{answer[:40]} … {answer[-25:]}"


def _page(demo: Demo, picture: bytes) -> str:
    header = "".join(f"<th>{escape(cell)}</th>" for cell in _HEADER)
    rows = "".join(_html_row(row) for row in _rows(demo))
    stories = "".join(f"<pre>{escape(_story(story))}</pre>" for story in examples(demo))
    image = base64.b64encode(picture).decode()
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>dami demo</title>'
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1d2733}"
        "table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.3rem .9rem;text-align:right;"
        "border-bottom:1px solid #dde3ea}td:first-child,th:first-child{text-align:left}pre{background:#f4f6f8;"
        "padding:.8rem;white-space:pre-wrap;overflow-wrap:anywhere}img{max-width:100%}</style>"
        f"<h1>dami demo</h1><p>{escape(_verdict(demo))}</p>"
        f'<img alt="Accuracy against tokens" src="data:image/svg+xml;base64,{image}">'
        f"<table><tr>{header}</tr>{rows}</table><h2>Three queries</h2>{stories}"
        "<p>The pair is tiny (215,000 parameters, one-digit arithmetic); its figures say how the method behaves,"
        " not how large it is on a real model. The estimator's form is ours, not the DAMI paper's.</p></html>\n"
    )


def _html_row(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
