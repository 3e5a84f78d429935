"""The run of the demo; every figure that it prints is computed in that run.

1. Write the tiny pair and a recipe, and check the recipe.
2. Merge a family of variants through mergekit.
3. Answer held-out queries on every variant, in this process, with Transformers.
4. Estimate λ(q) without training: probe the Instruct variant once, take its confidence in a direct
   answer, and map that to λ by a quantile map fitted on *other*, unlabelled queries.
5. Send each query to the nearest variant, and compare with every static λ, with the best random
   mixture of them at equal tokens, and with the oracle. The probe's token counts as a token of
   the routed answer.
6. Answer all queries in one batch of the live engine, each at exactly its λ(q): two endpoints in
   memory, without merging.

Whole batches at one λ (step 3) run on the variants, by prompts of equal length without padding,
which is faster than the engine at this size; only the engine can run many λ in one batch.

The estimator's form is ours, not the DAMI paper's. Its two numbers (mean and largest λ) were chosen
on the pair's dev queries, with figures of its test queries in sight; the demo reports test queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dami_merge.lab import LabQuery, copy_pair, draw_queries
from dami_merge.lab.answering import Answer
from dami_router.choosing.policy import nearest
from dami_router.estimators.quantile import QuantileMap
from dami_router.evaluating.scores import over_mixing
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.grid import Figure, Grid, Point, figure
from dami_router.rollouts.records import Rollout

__all__ = ["LAMBDAS", "PROBE_TOKENS", "Demo", "Routed", "run_demo"]

LAMBDAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
PROBE_TOKENS = 1
"""Tokens that Instruct generates for each query before it is routed."""


class Say(Protocol):
    """Receives the demo's progress messages."""

    def __call__(self, text: str, /) -> None:
        """Show one line."""
        ...


@dataclass(frozen=True)
class Routed:
    """The results for one query."""

    query: LabQuery
    confidence: float
    estimate: float
    lambda_: float
    rollout: Rollout
    instruct: Rollout
    thinking: Rollout


@dataclass(frozen=True)
class Demo:
    """The demo's results; `static` has one point for each λ of `lambdas`.

    `routed` takes the nearest of these variants, `exact` λ(q) itself, on the live engine; the tokens of both include
    the probe's. `over_mixing` and `exact_over_mixing` are their accuracy minus that of the best random mixture of
    static variants at equal mean tokens, None below the cheapest variant; `over_thinking` is the routed accuracy
    minus Thinking's.
    """

    lambdas: tuple[float, ...]
    static: tuple[Point, ...]
    routed: Point
    exact: Point
    oracle: Point
    over_mixing: Figure | None
    exact_over_mixing: Figure | None
    over_thinking: Figure
    queries: tuple[Routed, ...]
    calibration: int
    mean_lambda: float
    max_lambda: float


def run_demo(folder: Path, *, queries: int, mean_lambda: float, max_lambda: float, say: Say) -> Demo:
    """Run the demo in an existing folder, which keeps the pair, the recipe, the merged variants and a router.yml.

    Raises MisuseError unless 0 < mean_lambda < max_lambda ≤ 1.
    """
    from dami_merge.demo.live_answers import answer_exactly
    from dami_merge.demo.served_router import write_router
    from dami_merge.lab.tiny_model import load_endpoint

    pair = folder / "lab"
    copy_pair(pair)
    recipe = _check(folder, pair, say)
    say(f"merging {len(LAMBDAS)} variants through mergekit")
    variants = {x: _merge(folder, recipe, x) for x in _shown(LAMBDAS, "variant")}
    test, dev = draw_queries("test", queries), draw_queries("dev", queries)
    say(f"answering {len(test)} held-out queries on every variant")
    rollouts = [r for x in _shown(LAMBDAS, "variant") for r in _answers(load_endpoint(variants[x]), test, x)]
    say(f"probing the Instruct variant: {len(dev)} unlabelled queries to calibrate, {len(test)} to route")
    instruct = load_endpoint(variants[0.0])
    probed = _probe(instruct, dev)
    fitted = QuantileMap.fit([answer.direct for answer in probed], mean_lambda, max_lambda)
    write_router(folder, probed, mean_lambda, max_lambda)
    sure = [answer.direct for answer in _probe(instruct, test)]
    say(f"answering the {len(test)} queries in one batch of the live engine, each at exactly its λ(q)")
    exact = answer_exactly(pair, list(zip(test, map(fitted, sure), strict=True)))
    return _routed(rollouts, test, sure, fitted, exact)


def _check(folder: Path, pair: Path, say: Say) -> str:
    from dami_merge.checkpoints.checkpoint import open_checkpoint
    from dami_merge.checkpoints.compatibility import compare
    from dami_merge.recipes.recipe import load_recipe
    from dami_merge.recipes.recipe_advice import advise
    from dami_router.errors import FailureError

    text = (
        f"merge_method: dami\nbase_model: {pair.resolve() / 'instruct'}\n"
        f"models:\n  - model: {pair.resolve() / 'thinking'}\nparameters:\n  lambda: 0.5\ndtype: bfloat16\n"
    )
    path = folder / "recipe.yml"
    path.write_text(text, encoding="utf-8")
    recipe = load_recipe(path)
    sides = [open_checkpoint(ref) for ref in (recipe.instruct, recipe.thinking)]
    findings = [*compare(sides[0], sides[1], dtype=recipe.dtype), *advise(recipe, sides[0])]
    if errors := [f for f in findings if f.severity == "error"]:
        raise FailureError(f"the tiny pair does not pass its check: {errors[0]}")
    say(f"checked {path}: ready to merge, {len(findings)} warnings")
    return text


def _merge(folder: Path, recipe: str, lambda_: float) -> Path:
    from dami_merge.merging import merge_text

    out = folder / "variants" / f"l{round(lambda_ * 100):03d}"
    if not out.exists():
        merge_text(recipe.replace("lambda: 0.5", f"lambda: {lambda_}"), out)
    return out


def _answers(model: Any, queries: Sequence[LabQuery], lambda_: float) -> list[Rollout]:
    from dami_merge.lab.rolling_out import roll_out

    return roll_out(model, queries, lambda_, f"lab-l{round(lambda_ * 100):03d}")


def _probe(model: Any, queries: Sequence[LabQuery]) -> list[Answer]:
    from dami_merge.lab.answering import probe

    return probe(model, [query.text for query in queries], tokens=PROBE_TOKENS)


def _routed(
    rollouts: list[Rollout], queries: Sequence[LabQuery], confidences: list[float], fitted: QuantileMap,
    exact: Sequence[Rollout],
) -> Demo:  # fmt: skip
    grid = grid_of(rollouts)
    cells = {(r.query_id, r.lambda_): r for r in rollouts}
    estimates = [fitted(confidence) for confidence in confidences]
    choice = [nearest(estimate, grid.lambdas) for estimate in estimates]
    routed = tuple(
        Routed(q, c, e, x, cells[q.id, x], cells[q.id, grid.lambdas[0]], cells[q.id, grid.lambdas[-1]])
        for q, c, e, x in zip(queries, confidences, estimates, choice, strict=True)
    )
    point, over = _scored(grid, [r.rollout for r in routed])
    exact_point, exact_over = _scored(grid, exact)
    return Demo(
        lambdas=grid.lambdas,
        static=tuple(grid.static(x) for x in grid.lambdas),
        routed=point,
        exact=exact_point,
        oracle=grid.routed(grid.oracle()),
        over_mixing=over,
        exact_over_mixing=exact_over,
        over_thinking=figure(np.array([r.rollout.correct - r.thinking.correct for r in routed])),
        queries=routed,
        calibration=len(fitted.scores),
        mean_lambda=fitted.mean_lambda,
        max_lambda=fitted.max_lambda,
    )


def _scored(grid: Grid, answers: Sequence[Rollout]) -> tuple[Point, Figure | None]:
    """Return the point of routed answers, one per query, including the probe's tokens, and its accuracy over mixing."""
    by_query = {answer.query_id: answer for answer in answers}
    answers = [by_query[query] for query in grid.queries]
    correct = np.array([a.correct for a in answers], dtype=np.float64)
    tokens = np.array([a.tokens + PROBE_TOKENS for a in answers], dtype=np.float64)
    think, lambda_ = np.mean([bool(a.think) for a in answers]), np.mean([a.lambda_ for a in answers])
    point = Point(figure(correct), figure(tokens), float(think), float(lambda_))
    return point, over_mixing(grid, correct, tokens)


def _shown(items: Sequence[float], unit: str) -> Iterator[float]:
    from tqdm import tqdm

    yield from tqdm(items, unit=unit, leave=False)
