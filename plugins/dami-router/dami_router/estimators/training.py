"""Training of an estimator: features, a model by cross-validation, then the price.

No choice is made on a query that it was fitted on: penalties and price are chosen on what the folds' models expect of
the queries that they held out. The same rollouts and seed give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dami_router.errors import MisuseError
from dami_router.estimators.decision import best_price, choose, price_within, tie_breaks
from dami_router.estimators.features import Encoder, HashedText
from dami_router.estimators.inputs import FeatureMap, Inputs, read_inputs
from dami_router.estimators.neighbours import fit_neighbours
from dami_router.estimators.preference import centred, fit_preference
from dami_router.estimators.trained import CrossFit, Trained
from dami_router.rollouts.folds import fingerprint, folds_of
from dami_router.rollouts.grid import Grid

__all__ = ["METHODS", "Method", "TrainingSettings", "evidence_of", "inputs_of", "train"]

Floats = NDArray[np.float64]
Method = Literal["preference", "neighbours"]
METHODS: tuple[Method, ...] = get_args(Method)
_LARGEST = 20_000
"""Most queries to train on; of more, a random sample is taken."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    `price` ∈ [0, 1]: accuracy that a mean answer of the most expensive variant must gain; `budget` ∈ (0, 1]: at most
    this fraction of that variant's mean tokens on held-out folds, whatever the price; `method`: the model; `knots`:
    steps for each plain number, for `preference` only; `folds` ≥ 2; `seed` ≥ 0 of the folds.
    """

    method: Method = "preference"
    price: float = 0.05
    budget: float | None = None
    knots: int = 16
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.price <= 1.0:
            raise MisuseError(f"training expects a price in [0, 1], found {self.price:g}")
        if self.budget is not None and not 0.0 < self.budget <= 1.0:
            raise MisuseError(f"training expects a budget above 0 and at most 1, found {self.budget:g}")
        if self.method not in METHODS:
            raise MisuseError(f"training expects a method of {', '.join(METHODS)}, found {self.method!r:.40}")
        if self.folds < 2 or self.seed < 0 or not 0 <= self.knots <= 256:
            raise MisuseError("training expects at least 2 folds, a seed of at least 0, and 0 to 256 knots")


def train(
    grid: Grid,
    settings: TrainingSettings = TrainingSettings(),
    *,
    encoder: Encoder | None = None,
    use_confidence: bool | None = None,
    inputs: Inputs | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train on every query of a grid (with texts).

    If `use_confidence` is None, Instruct's confidence is a feature if every query has it. `inputs` are those of
    `inputs_of`, if they were read before. Raises MisuseError for fewer than two variants, too few queries, or rollouts
    in which all variants are alike.
    """
    if len(grid.lambdas) < 2:
        raise MisuseError(f"training needs rollouts of at least two variants, found only λ={grid.lambdas[0]:g}")
    encoder = encoder or HashedText()
    names = evidence_of(grid, use_confidence)
    if len(grid.queries) > _LARGEST:
        note(f"{len(grid.queries):,} queries: training on {_LARGEST:,} of them, drawn at random")
        index = np.sort(np.random.default_rng(settings.seed).permutation(len(grid.queries))[:_LARGEST])
        grid, inputs = grid.rows(index), None if inputs is None else inputs.rows(index)
    if inputs is None:
        inputs = inputs_of(grid, encoder, names)
    return _fit(grid, settings, encoder, names, inputs)


def evidence_of(grid: Grid, use_confidence: bool | None) -> tuple[str, ...]:
    """Return which evidence a grid has for every query; raises MisuseError if it is required but missing."""
    lacking = len(grid.queries) if grid.confidence is None else int(np.isnan(grid.confidence).sum())
    if use_confidence and lacking:
        raise MisuseError(f"{lacking:,} of {len(grid.queries):,} queries have no confidence")
    return ("confidence",) if not lacking and use_confidence is not False else ()


def inputs_of(grid: Grid, encoder: Encoder, names: Sequence[str]) -> Inputs:
    """Return what is known of a grid's queries before training, with the evidence of `names`."""
    known: list[Mapping[str, float]] = []
    if names and grid.confidence is not None:
        known = [{"confidence": float(x)} for x in grid.confidence]
    return read_inputs(grid.texts, encoder, known, names)


def _fit(grid: Grid, settings: TrainingSettings, encoder: Encoder, names: tuple[str, ...], inputs: Inputs) -> Trained:
    folds = folds_of(grid.texts, settings.folds, seed=settings.seed)
    tokens = float(grid.tokens.mean(axis=0).max())
    targets = centred(grid.correct, grid.tokens, max(tokens, 1e-9))
    if not np.abs(targets).max() > 0:
        raise MisuseError(
            "these rollouts hold no preference: all variants are equally accurate at equal cost",
            hint="add queries that some variants get wrong",
        )
    near = settings.method == "neighbours"
    # Distances are those of the numbers themselves.
    features = FeatureMap.fit(inputs, 0 if near else settings.knots)
    fitted = (fit_neighbours if near else fit_preference)(features.design(inputs), targets, folds)
    prints = [fingerprint(text) for text in grid.texts]
    price = _price(grid, settings, fitted, tie_breaks(prints), names)
    return Trained(
        encoder, features, fitted.model, grid.lambdas, price, tokens, names, name=settings.method,
        about=_about(grid, settings, fitted, price, tie_breaks(prints), names), trained_on=frozenset(prints),
    )  # fmt: skip


def _price(grid: Grid, settings: TrainingSettings, fitted: CrossFit, ties: Floats, names: tuple[str, ...]) -> float:
    """Return the price that serves the settings' price best on held-out folds, or the lowest one within the budget."""
    expected = fitted.held_out
    if settings.budget is None:
        scale = max(float(grid.tokens.mean(axis=0).max()), 1e-9)
        return best_price(expected.gain, expected.cost, grid.correct - settings.price * grid.tokens / scale, ties)
    means = grid.tokens.mean(axis=0)
    allowed, probe = settings.budget * float(means.max()), _probe(grid, names)
    found = price_within(expected.gain, expected.cost, grid.tokens, allowed - probe, ties)
    if found is None:
        spare = f", of which the probe for the confidence takes {probe:,.1f}" if probe else ""
        raise MisuseError(
            f"no choice of λ stays within {allowed:,.1f} tokens{spare}: {settings.budget:.0%} of the most expensive"
            " variant's",
            hint=f"the cheapest variant needs {means.min():,.1f}",
        )
    return found


def _probe(grid: Grid, names: tuple[str, ...]) -> float:
    """Return the mean tokens of a probe; raises MisuseError where a confidence has no cost."""
    if not names or grid.probe_tokens is None:
        return 0.0
    if unknown := int(np.isnan(grid.probe_tokens).sum()):
        raise MisuseError(
            f"the confidence of {unknown:,} queries has no `probe_tokens`, so that nothing can be said about costs",
            hint="say what measuring it took: `probe_tokens` in the rollouts, or --probe-tokens",
        )
    return float(grid.probe_tokens.mean())


def _about(
    grid: Grid, settings: TrainingSettings, fitted: CrossFit, price: float, ties: Floats, names: tuple[str, ...]
) -> dict[str, Any]:
    """Return facts of the training. The price was chosen on the very folds of the held-out figures: they flatter."""
    chosen = choose(fitted.held_out.gain, fitted.held_out.cost, price, ties)
    rows = np.arange(len(chosen))
    return {
        "queries": len(grid.queries), "levels": [x for i, x in enumerate(grid.lambdas) if (chosen == i).any()],
        "held_out_accuracy": float(grid.correct[rows, chosen].mean()),
        "held_out_tokens": float(grid.tokens[rows, chosen].mean()) + _probe(grid, names),
        "explained": fitted.explained, **fitted.chosen, **asdict(settings),
    }  # fmt: skip
