"""Comparison of estimators with static variants, random mixing, query length and the oracle, on unseen queries.

The default estimator is trained once per fold and evaluated on the queries outside its training folds. A trained
folder, or an installed estimator, is evaluated on queries that it was not trained on. All estimators are compared on
the same queries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dami_router.choosing.policy import nearest
from dami_router.errors import FailureError, MisuseError
from dami_router.estimators.decision import choose, prices_of_switches, tie_breaks
from dami_router.estimators.estimator import Estimator
from dami_router.estimators.features import Encoder, HashedText
from dami_router.estimators.hidden_encoder import HiddenEncoder
from dami_router.estimators.inputs import Inputs
from dami_router.estimators.query import Query
from dami_router.estimators.sparse import SparseRows
from dami_router.estimators.trained import Trained
from dami_router.estimators.training import TrainingSettings, evidence_of, inputs_of, train
from dami_router.evaluating.rivals import Rival, capped_points, cross_fold, over_best_cap, over_best_static
from dami_router.evaluating.scores import (
    apgr,
    apgr_in_folds,
    cost_curve,
    cpt,
    mixing_at,
    over_mixing,
    pareto_distance,
    ranks,
    saving_at,
)
from dami_router.rollouts.folds import fingerprint, folds_of
from dami_router.rollouts.grid import Figure, Grid, Point, dominated, figure

__all__ = ["Comparison", "Contender", "compare", "cross_validated", "length_of_query", "unseen", "with_estimator"]

Floats = NDArray[np.float64]
CPT_SHARES = (0.5, 0.8)
_SWEPT = 41
"""Prices of the cost curve."""


@dataclass(frozen=True)
class Contender:
    """One way of choosing: λ(q) for each query, and the score that orders them (higher: more thinking).

    Scores compare only inside one of `folds`; without folds, all compare. `cost`: the tokens that choosing itself takes
    for each query, such as a probe; None for nothing. `sweep`: its choices at other costs, one row of columns of the
    grid per cost; None where only the order is known.
    """

    name: str
    lambdas: tuple[float, ...]
    score: Floats
    folds: tuple[NDArray[np.intp], ...] = ()
    cost: Floats | None = None
    sweep: NDArray[np.intp] | None = None

    @property
    def ranks(self) -> Floats:
        """The score's rank inside its fold, in (0, 1)."""
        return ranks(self.score, self.folds)


@dataclass(frozen=True)
class Comparison:
    """The results: a point for each variant, and the point and metrics of each contender.

    `rivals`: each contender against the best static λ, and the best cap; `capped`: a point for each λ with a cap.
    """

    grid: Grid
    static: tuple[Point, ...]
    oracle: Point
    contenders: tuple[Contender, ...]
    points: tuple[Point, ...]
    metrics: tuple[Mapping[str, Any], ...]
    curves: tuple[tuple[tuple[float, float], ...], ...]
    rivals: tuple[tuple[Rival, ...], ...] = ()
    capped: tuple[tuple[tuple[float, int], Point], ...] = ()

    @property
    def headlines(self) -> list[str]:
        """Each estimator against the best static λ, and the best cap if caps were run, in sentences.

        They say, too, where one static λ is more accurate than the estimator on these queries.
        """
        found = zip(self.contenders, self.points, self.rivals, strict=True)
        return [
            " ".join([f"{c.name}: {_reached(point)}.", *(rival.sentence() for rival in rivals), *self._warned(point)])
            for c, point, rivals in found
            if rivals
        ]

    @property
    def dominated(self) -> tuple[float, ...]:
        """The λ of the dominated variants: another one is better in accuracy or cost, and no worse in the other."""
        return tuple(x for x, beaten in zip(self.grid.lambdas, dominated(self.static), strict=True) if beaten)

    def above(self, point: Point) -> tuple[float, ...]:
        """The λ that, for every query, are more accurate than this point, or as accurate and cheaper."""
        reached = (point.accuracy.mean, -point.tokens.mean)
        found = zip(self.grid.lambdas, self.static, strict=True)
        return tuple(x for x, static in found if (static.accuracy.mean, -static.tokens.mean) > reached)

    def _warned(self, point: Point) -> list[str]:
        static = dict(zip(self.grid.lambdas, self.static, strict=True))
        above = self.above(point)
        cheap = [x for x in above if static[x].tokens.mean <= point.tokens.mean]
        if not above:
            return []
        best = max(cheap or above, key=lambda x: static[x].accuracy.mean)
        return [f"λ={best:g} for every query is {'better' if cheap else 'more accurate'}: {_reached(static[best])}."]

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison for JSON."""
        return {
            "queries": len(self.grid.queries),
            "static": [{"lambda": x, **_flat(p)} for x, p in zip(self.grid.lambdas, self.static, strict=True)],
            "dominated": list(self.dominated),
            "capped": [{"lambda": x, "cap": cap, **_flat(p)} for (x, cap), p in self.capped],
            "oracle": _flat(self.oracle),
            "estimators": [
                {"name": c.name, **_flat(p), **m, **_named(rivals), "static_above": list(self.above(p))}
                for c, p, m, rivals in zip(self.contenders, self.points, self.metrics, self.rivals, strict=True)
            ],
        }


def cross_validated(
    grid: Grid,
    settings: TrainingSettings,
    folds: int,
    note: Callable[[str], None] = lambda _: None,
    *,
    encoder: Encoder | None = None,
    use_confidence: bool | None = None,
) -> Contender:
    """Return the default estimator, trained `folds` times, with each query's λ from the model that did not see it."""
    names = evidence_of(grid, use_confidence)
    inputs = inputs_of(grid, encoder or HashedText(), names)
    alone = bool(evidence_of(grid, None)) and not names
    name = f"{settings.method}, text alone" if alone else settings.method
    return _held_out(name, grid, settings, folds, inputs, names, note)


def length_of_query(grid: Grid, settings: TrainingSettings, folds: int) -> Contender:
    """Return the same estimator, trained on nothing but the query's length."""
    length = np.log1p([[float(len(text))] for text in grid.texts])
    nothing = SparseRows.of([{}] * len(grid.queries), 0)
    settings = replace(settings, method="preference")
    return _held_out("query length", grid, settings, folds, Inputs(length, nothing), (), lambda _: None)


def _held_out(
    name: str, grid: Grid, settings: TrainingSettings, folds: int, inputs: Inputs, names: Sequence[str],
    note: Callable[[str], None],
) -> Contender:  # fmt: skip
    parts = folds_of(grid.texts, folds, seed=settings.seed)
    gain, cost = np.zeros(grid.correct.shape), np.zeros(grid.correct.shape)
    columns = np.zeros(len(grid.queries), dtype=np.intp)
    for number, part in enumerate(parts, 1):
        note(f"fold {number} of {folds}: training on the other {folds - 1}")
        rest = np.setdiff1d(np.arange(len(columns)), part)
        trained = train(grid.rows(rest), settings, inputs=inputs.rows(rest), use_confidence=bool(names))
        values = trained.of_inputs(inputs.rows(part))
        columns[part] = trained.choices(values, [grid.texts[i] for i in part])
        gain[part], cost[part] = values.gain, values.cost
    lambdas = tuple(grid.lambdas[i] for i in columns)
    probe = grid.probe_tokens if names else None
    return Contender(name, lambdas, gain[:, -1] - gain[:, 0], tuple(parts), probe, _sweep(grid.texts, gain, cost))


def _sweep(texts: Sequence[str], gain: Floats, cost: Floats) -> NDArray[np.intp]:
    """Return the choices (prices, queries) at prices from the highest to 0."""
    ties = tie_breaks([fingerprint(text) for text in texts])
    return np.array([choose(gain, cost, float(price), ties) for price in prices_of_switches(gain, cost, _SWEPT)])


def unseen(grid: Grid, estimators: Sequence[Estimator]) -> Grid:
    """Return the queries that none of these was trained on; raises MisuseError if none are left."""
    seen = frozenset[str]().union(*(e.trained_on for e in estimators if isinstance(e, Trained)))
    kept = [i for i, text in enumerate(grid.texts) if fingerprint(text) not in seen]
    if not kept:
        raise MisuseError(
            "every query of these rollouts was used for training",
            hint="give rollouts of other queries, or omit --estimator to cross-validate",
        )
    return grid.rows(kept)


def with_states(estimator: Estimator, encoder: HiddenEncoder) -> Estimator:
    """Return an estimator that was trained on hidden states with those of these queries; others unchanged.

    Raises MisuseError if they are of another model than it was trained on.
    """
    if not isinstance(estimator, Trained) or not isinstance(estimator.encoder, HiddenEncoder):
        return estimator
    wanted = estimator.encoder
    if (wanted.model, wanted.dimensions) != (encoder.model, encoder.dimensions):
        raise MisuseError(f"trained on hidden states of `{wanted.model}`, found those of `{encoder.model}`")
    return replace(estimator, encoder=encoder)


def with_estimator(name: str, estimator: Estimator, grid: Grid) -> Contender:
    """Return an estimator's λ for each query; raises FailureError if it has none, or one outside [0, 1]."""
    if isinstance(estimator, Trained):
        return _with_trained(name, estimator, grid)

    async def ask() -> list[float]:
        return [(await estimator.estimate(Query(text))).lambda_ for text in grid.texts]

    found = asyncio.run(ask())
    for query, lambda_ in zip(grid.queries, found, strict=True):
        if not 0.0 <= lambda_ <= 1.0:
            raise FailureError(f"estimator `{name}` returned λ={lambda_} for query `{query}`; expected 0 to 1")
    return Contender(name, tuple(found), np.array(found))


def _with_trained(name: str, estimator: Trained, grid: Grid) -> Contender:
    names = evidence_of(grid, bool(estimator.evidence))
    values = estimator.of_inputs(inputs_of(grid, estimator.encoder, names))
    lambdas = tuple(estimator.lambdas[i] for i in estimator.choices(values, grid.texts))
    # Its variants may be others than those of the grid.
    at = np.array([grid.lambdas.index(nearest(x, grid.lambdas)) for x in estimator.lambdas], dtype=np.intp)
    swept = at[_sweep(grid.texts, values.gain, values.cost)]
    probe = grid.probe_tokens if names else None
    return Contender(name, lambdas, values.gain[:, -1] - values.gain[:, 0], (), probe, swept)


def compare(grid: Grid, contenders: Sequence[Contender]) -> Comparison:
    """Return every contender's operating point and metrics on the same queries; tokens include the choice's own."""
    chosen = [_columns(grid, c) for c in contenders]
    curves = tuple(tuple(_curve(grid, c)) for c in contenders)
    points = tuple(
        grid.routed([grid.lambdas[i] for i in columns], c.cost) for c, columns in zip(contenders, chosen, strict=True)
    )
    found = zip(contenders, chosen, points, curves, strict=True)
    return Comparison(
        grid, tuple(grid.static(x) for x in grid.lambdas), grid.routed(grid.oracle()), tuple(contenders), points,
        tuple(_metrics(grid, *one) for one in found), curves,
        tuple(_rivals(grid, c, columns) for c, columns in zip(contenders, chosen, strict=True)), capped_points(grid),
    )  # fmt: skip


def _rivals(grid: Grid, contender: Contender, columns: NDArray[np.intp]) -> tuple[Rival, ...]:
    rows, folds = np.arange(len(columns)), cross_fold(grid)
    spent = grid.tokens[rows, columns] + (0.0 if contender.cost is None else contender.cost)
    found = (over(grid, grid.correct[rows, columns], spent, folds) for over in (over_best_static, over_best_cap))
    return tuple(rival for rival in found if rival is not None)


def _reached(point: Point) -> str:
    return f"{point.accuracy.mean:.1%} correct at {point.tokens.mean:,.1f} tokens"


def _named(rivals: Sequence[Rival]) -> dict[str, Any]:
    return {f"over_{'_'.join(r.name.replace('λ', 'lambda').split())}": r.as_dict() for r in rivals}


def _columns(grid: Grid, contender: Contender) -> NDArray[np.intp]:
    index = {lambda_: i for i, lambda_ in enumerate(grid.lambdas)}
    return np.array([index[nearest(x, grid.lambdas)] for x in contender.lambdas], dtype=np.intp)


def _curve(grid: Grid, contender: Contender) -> list[tuple[float, float]]:
    """Return (tokens, accuracy) over all costs."""
    cost = np.zeros(len(grid.queries)) if contender.cost is None else contender.cost
    if contender.sweep is None:
        return cost_curve(grid, contender.ranks, cost)
    rows = np.arange(len(cost))
    return [
        (float((grid.tokens[rows, columns] + cost).mean()), float(grid.correct[rows, columns].mean()))
        for columns in contender.sweep
    ]


def _metrics(
    grid: Grid, contender: Contender, columns: NDArray[np.intp], point: Point, curve: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    accuracy, tokens = point.accuracy.mean, point.tokens.mean
    means, thinking = grid.correct.mean(axis=0), float(grid.tokens[:, -1].mean())
    rows = np.arange(len(columns))
    correct, gain = grid.correct[rows, columns], grid.correct[rows, columns] - grid.correct[:, -1]
    spent = grid.tokens[rows, columns] + (0.0 if contender.cost is None else contender.cost)
    over = over_mixing(grid, correct, spent)
    out: dict[str, Any] = {
        "over_largest_lambda": asdict(figure(gain)),
        "tokens_of_largest_lambda": tokens / thinking if thinking else None,
        "estimator_tokens": 0.0 if contender.cost is None else float(contender.cost.mean()),
        "random_mixing_accuracy": mixing_at(grid, tokens),
        "over_random_mixing": None if over is None else over.mean,
        "over_random_mixing_interval": None if over is None else [over.low, over.high],
        "perf_gain": accuracy - float(means.max()),
        "cost_save": saving_at(curve, float(means[-1]), thinking),
        "pareto_dist": pareto_distance(grid, accuracy, tokens),
        "lambda_histogram": {f"{x:g}": int((columns == i).sum()) for i, x in enumerate(grid.lambdas)},
    }
    return {**out, **_two_variants(grid, contender)} if len(grid.lambdas) == 2 else {**out, "apgr": None}


def _two_variants(grid: Grid, contender: Contender) -> dict[str, Any]:
    weak, strong = grid.correct.T
    parts = contender.folds or (np.arange(len(weak)),)
    found, without = apgr_in_folds(contender.score, weak, strong, parts)
    return {
        "apgr": None if found is None else found.mean,
        "apgr_interval": None if found is None else [found.low, found.high],
        "apgr_by_fold": [apgr(contender.score[p], weak[p], strong[p]) for p in parts],
        "folds_without_gap": without,
        "cpt": {f"{share:.0%}": cpt(contender.ranks, weak, strong, share) for share in CPT_SHARES},
    }


def _flat(point: Point) -> dict[str, Any]:
    def interval(found: Figure) -> list[float]:
        return [found.low, found.high]

    return {
        "accuracy": point.accuracy.mean,
        "accuracy_interval": interval(point.accuracy),
        "mean_tokens": point.tokens.mean,
        "mean_tokens_interval": interval(point.tokens),
        "mean_lambda": point.mean_lambda,
        "think_share": None if np.isnan(point.think_share) else point.think_share,
    }
