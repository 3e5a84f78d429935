"""The demo's table, examples and HTML page."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dami_merge.demo.running import PROBE_TOKENS, Demo, Routed
from dami_router.evaluating.frontier_file import FRONTIER_FILE, frontier_of
from dami_router.evaluating.html_page import html_page, html_picture, html_table, html_text
from dami_router.evaluating.plots import draw_frontier, render
from dami_router.output import table
from dami_router.rollouts.grid import Figure, Point, dominated
from dami_router.rollouts.records import Rollout
from dami_router.shared.durable import write_atomically

__all__ = ["as_dict", "as_text", "examples", "page_address", "write_report"]

_HEADER = ("choice", "accuracy", "95 % interval", "tokens", "thinks", "mean λ")


def as_text(demo: Demo) -> str:
    """Return the table of static variants, routed points and the oracle, the comparison, and three example queries."""
    return "\n\n".join([table(_HEADER, _rows(demo)), _verdict(demo), *map(_story, examples(demo))])


def as_dict(demo: Demo) -> dict[str, Any]:
    """Return all figures for JSON."""
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
        "accuracy_over_thinking": demo.over_thinking.mean,
        "accuracy_over_thinking_interval": [demo.over_thinking.low, demo.over_thinking.high],
        "accuracy_over_mixing": demo.over_mixing and asdict(demo.over_mixing),
        "exact_accuracy_over_mixing": demo.exact_over_mixing and asdict(demo.exact_over_mixing),
        "probe_tokens": PROBE_TOKENS,
    }


def write_report(demo: Demo, folder: Path) -> list[Path]:
    """Write `report.html`, `frontier.png` and `frontier.json` into a folder and return their paths."""
    others = {"routed, zero-shot": demo.routed, "exactly λ(q), live": demo.exact, "oracle": demo.oracle}
    title = f"The tiny pair, {len(demo.queries)} held-out queries"
    figure = draw_frontier(demo.lambdas, demo.static, others, title=title)
    files = {
        "frontier.png": render(figure, "png"),
        "report.html": _page(demo, render(figure, "svg")).encode(),
        FRONTIER_FILE: frontier_of(title, len(demo.queries), demo.lambdas, demo.static, others).text().encode(),
    }
    for name, data in files.items():
        write_atomically(folder / name, data)
    return [folder / name for name in files]


def examples(demo: Demo) -> list[Routed]:
    """Choose queries that show what routing does: one for Instruct, one with more thinking, and one wrong answer."""
    right = [r for r in demo.queries if r.rollout.correct]
    easy = [r for r in right if r.lambda_ == demo.lambdas[0]]
    hard = [r for r in right if r.lambda_ > demo.lambdas[0] and not r.instruct.correct]
    wrong = [r for r in demo.queries if not r.rollout.correct and r.thinking.correct]
    return [max(found, key=_telling) for found in (easy, hard, wrong) if found]


def page_address(demo: Demo) -> str:
    """Return the page's address at `dami live`'s port, with a query that needs thinking filled in."""
    asked = next((r for r in examples(demo) if r.lambda_ > demo.lambdas[0]), demo.queries[0])
    return f"http://127.0.0.1:8010/ui#playground?prompt={quote(asked.query.text)}&lambda=0"


def _telling(routed: Routed) -> tuple[int, str]:
    # Prefer long queries; ties are broken by text, so that equal runs show equal examples.
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
        name, f"{accuracy.mean:.1%}", f"{100 * accuracy.low:.1f}–{100 * accuracy.high:.1f}%",
        f"{point.tokens.mean:.1f}", f"{point.think_share:.0%}", f"{point.mean_lambda:.2f}",
    )  # fmt: skip


def _verdict(demo: Demo) -> str:
    share = demo.routed.tokens.mean / demo.static[-1].tokens.mean
    return (
        "Accuracy against the best random mixture of static variants at equal mean tokens:"
        f" routed {_points(demo.over_mixing)}; exactly λ(q) {_points(demo.exact_over_mixing)}.\n"
        "Accuracy against the Thinking variant for every query:"
        f" routed {_points(demo.over_thinking)}, at {share:.0%} of its tokens.\n"
        "Differences are in points, with 95 % bootstrap intervals paired by query; routed tokens include the probe"
        f" ({PROBE_TOKENS} token per query).\n"
        "λ(q) comes from the Instruct variant's confidence in its own direct answer. No labels are used:"
        f" {demo.calibration} other queries set the scale (target mean λ {demo.mean_lambda:g}, largest"
        f" {demo.max_lambda:g}).\n"
        "Zero-shot routing takes the nearest variant of the table. Exactly λ(q) is answered by the live engine: two"
        " endpoints in memory, every query of a batch at its own λ."
    )


def _points(difference: Figure | None) -> str:
    return "not comparable (cheaper than every variant)" if difference is None else difference.in_points()


def _story(routed: Routed) -> str:
    lines = [f"{routed.query.text}{routed.query.expected}   ({_estimate(routed)})"]
    for name, rollout in _answers(routed):
        mark = "right" if rollout.correct else "wrong"
        lines.append(f"  {name:<15} {mark}, {rollout.tokens:>3} tokens: {_short(rollout.answer or '')}")
    return "\n".join(lines)


def _told(routed: Routed) -> str:
    """Return a story for the report."""
    question = f"{routed.query.text}{routed.query.expected}"
    answers = "".join(
        f"<li><strong>{escape(name)}</strong> {'right' if rollout.correct else 'wrong'}, {rollout.tokens} tokens"
        f"<code>{escape(rollout.answer or '')}</code></li>"
        for name, rollout in _answers(routed)
    )
    estimate = html_text(f"{_estimate(routed).capitalize()}.")
    return f'<h3><code>{escape(question)}</code></h3>{estimate}<ul class="answers">{answers}</ul>'


def _answers(routed: Routed) -> list[tuple[str, Rollout]]:
    return [("λ=0", routed.instruct), (f"routed, λ={routed.lambda_:g}", routed.rollout), ("λ=1", routed.thinking)]


def _estimate(routed: Routed) -> str:
    return f"confidence {routed.confidence:.2f} → λ(q) = {routed.estimate:.2f}"


def _short(answer: str) -> str:
    return answer if len(answer) <= 70 else f"{answer[:40]} … {answer[-25:]}"


def _page(demo: Demo, picture: bytes) -> str:
    verdict = "".join(map(html_text, _verdict(demo).splitlines()))
    stories = "".join(map(_told, examples(demo)))
    return html_page(
        "dami demo",
        f"{verdict}{html_picture(picture, 'image/svg+xml', alt='Accuracy against tokens')}"
        f"{html_table(_HEADER, _rows(demo), label='Accuracy and tokens')}<h2>Three queries</h2>{stories}"
        "<p>The pair is tiny (215,000 parameters, one-digit arithmetic). Its figures show how the method behaves, not"
        " how large the effect is on a real model. The estimator's form is ours, not the DAMI paper's.</p>",
    )
