"""Training of the preference estimator: features, cross-validated choice of the ridge, μ, then cuts.

No choice is made on a query that it was fitted on. The ridge is the one with the smallest loss on held-out
folds; the cuts are fitted on the μ of the same held-out folds; the estimator is the mean of the folds' models.
The same rollouts and seed give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dami_router.errors import MisuseError
from dami_router.estimators.basis import Basis
from dami_router.estimators.bradley_terry import Pairs, ideal, loss, preferences
from dami_router.estimators.cuts import Cuts
from dami_router.estimators.descent import minimise
from dami_router.estimators.features import Encoder, HashedText
from dami_router.estimators.preference import Preference, features, numbers_of
from dami_router.rollouts.folds import fingerprint, folds_of
from dami_router.rollouts.grid import Grid

__all__ = ["TrainingSettings", "evidence_of", "train"]

Floats = NDArray[np.float64]
RIDGES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
_STEPS = 60
_LARGEST = 20_000
"""Most queries to train on; of more, a random sample is taken. Features are held as dense rows."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    `price` ∈ [0, 1]: accuracy that a mean answer of the most expensive variant must gain; `budget` ∈ (0, 1]: at most
    this fraction of that variant's mean tokens on held-out folds, whatever the price; `margin` ≥ 0: differences in
    utility below it are ties; `knots`: steps for each plain number; `folds` ≥ 2; `seed` ≥ 0 of the folds.
    """

    price: float = 0.05
    budget: float | None = None
    margin: float = 0.005
    knots: int = 16
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("price", self.price), ("margin", self.margin), ("budget", self.budget or 0.0)):
            if not 0.0 <= value <= 1.0:
                raise MisuseError(f"training expects {name} in [0, 1], found {value:g}")
        if self.folds < 2 or self.seed < 0 or not 0 <= self.knots <= 256:
            raise MisuseError("training expects at least 2 folds, a seed of at least 0, and 0 to 256 knots")


def train(
    grid: Grid,
    settings: TrainingSettings = TrainingSettings(),
    *,
    encoder: Encoder | None = None,
    use_confidence: bool | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Preference:
    """Train on every query of a grid (with texts).

    If `use_confidence` is None, Instruct's confidence is a feature if every query has it. Raises MisuseError
    for fewer than two variants, too few queries, or rollouts without any preference.
    """
    if len(grid.lambdas) < 2:
        raise MisuseError(f"training needs rollouts of at least two variants, found only λ={grid.lambdas[0]:g}")
    if len(grid.queries) > _LARGEST:
        note(f"{len(grid.queries)} queries: training on {_LARGEST} of them, drawn at random")
        grid = grid.rows(np.sort(np.random.default_rng(settings.seed).permutation(len(grid.queries))[:_LARGEST]))
    return _fit(grid, settings, encoder or HashedText(), evidence_of(grid, use_confidence))


def evidence_of(grid: Grid, use_confidence: bool | None) -> tuple[str, ...]:
    """Return which evidence a grid has for every query; raises MisuseError if it is required but missing."""
    lacking = len(grid.queries) if grid.confidence is None else int(np.isnan(grid.confidence).sum())
    if use_confidence and lacking:
        raise MisuseError(f"{lacking} of {len(grid.queries)} queries have no confidence")
    return ("confidence",) if not lacking and use_confidence is not False else ()


def _fit(grid: Grid, settings: TrainingSettings, encoder: Encoder, names: tuple[str, ...]) -> Preference:
    folds = folds_of(grid.texts, settings.folds, seed=settings.seed)
    confidence = grid.confidence if names and grid.confidence is not None else ()
    numbers = numbers_of(grid.texts, [{"confidence": float(c)} for c in confidence], names)
    vectors = encoder.encode(grid.texts)
    lambdas = np.array(grid.lambdas)
    pairs = preferences(lambdas, grid.correct, grid.tokens, price=settings.price, margin=settings.margin)
    if pairs.mass == 0:
        raise MisuseError(
            "these rollouts hold no preference: all variants are equally accurate at equal cost",
            hint="add queries that some variants get wrong, or a smaller --margin",
        )
    basis = Basis.fit(numbers, settings.knots)
    x = features(basis, numbers, vectors)
    parameters, held_out, ridge, held_out_loss = _cross_fitted(x, pairs, folds)
    cuts = _cuts(grid, held_out, settings)
    return Preference(
        encoder, basis, parameters, cuts, names, about=_about(grid, settings, pairs, ridge, held_out_loss, cuts),
        trained_on=frozenset(map(fingerprint, grid.texts)),
    )  # fmt: skip


def _cuts(grid: Grid, mu: Floats, settings: TrainingSettings) -> Cuts:
    """Return the cuts for the price, or for the smallest price within the budget."""
    lambdas = np.array(grid.lambdas)
    if settings.budget is None:
        return Cuts.fit(mu, utility(grid, settings.price), lambdas)
    allowed = settings.budget * float(grid.tokens.mean(axis=0).max())
    rows = np.arange(len(mu))
    for price in np.geomspace(0.002, 2.0, 61):
        cuts = Cuts.fit(mu, utility(grid, float(price)), lambdas)
        columns = np.searchsorted(lambdas, [cuts(float(x)) for x in mu])
        if grid.tokens[rows, columns].mean() <= allowed:
            return cuts
    raise MisuseError(
        f"no choice of λ stays within {allowed:.1f} tokens, {settings.budget:.0%} of the most expensive variant's",
        hint=f"the cheapest variant needs {grid.tokens.mean(axis=0).min():.1f}",
    )


def utility(grid: Grid, price: float) -> Floats:
    """Return correct − price·tokens/scale, (queries, variants); `scale` is the most expensive variant's mean tokens."""
    scale = max(float(grid.tokens.mean(axis=0).max()), 1e-9)
    value: Floats = grid.correct - np.minimum(price * grid.tokens / scale, 1.0)
    return value


def _cross_fitted(x: Floats, pairs: Pairs, folds: Sequence[NDArray[np.intp]]) -> tuple[Floats, Floats, float, float]:
    """Return parameters, each query's μ from the fold that it was not in, the best ridge, and its held-out loss.

    The parameters are the mean over the folds' models. One model fitted on everything would be more
    confident than the models whose μ the cuts are fitted on.
    """
    # A bucket without queries has no gradient: its parameters stay 0 and are left out.
    alive = np.flatnonzero(x.any(axis=0))
    dense = np.ascontiguousarray(x[:, alive])
    mu, losses = np.zeros((len(RIDGES), len(x))), np.zeros(len(RIDGES))
    fitted = np.zeros((len(RIDGES), 2 * len(alive) + 2))
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(x)), fold)
        held = pairs.rows(fold)
        for i, parameters in enumerate(_path(dense[rest], pairs.rows(rest))):
            mu[i, fold] = ideal(parameters, dense[fold])[0]
            losses[i] += loss(parameters, dense[fold], held, 0.0)[0] * held.mass / pairs.mass
            fitted[i] += parameters / len(folds)
    best = int(np.argmin(losses))
    return _spread(fitted[best], alive, x.shape[1]), mu[best], RIDGES[best], float(losses[best])


def _spread(parameters: Floats, alive: NDArray[np.intp], width: int) -> Floats:
    """Return [w, b, v, c] over all features from those over the `alive` ones."""
    out = np.zeros((2, width + 1))
    out[:, [*alive, width]] = parameters.reshape(2, -1)
    return out.ravel()


def _path(x: Floats, pairs: Pairs) -> Iterator[Floats]:
    """Yield the fitted parameters for falling ridges, each started from the one before."""
    parameters = np.zeros(2 * x.shape[1] + 2)
    for ridge in RIDGES:

        def objective(p: Floats, ridge: float = ridge) -> tuple[float, Floats]:
            return loss(p, x, pairs, ridge)

        parameters = minimise(objective, parameters, steps=_STEPS)
        yield parameters


def _about(
    grid: Grid, settings: TrainingSettings, pairs: Pairs, ridge: float, held_out: float, cuts: Cuts
) -> dict[str, Any]:
    return {
        "queries": len(grid.queries), "lambdas": list(grid.lambdas), "pairs": int(np.count_nonzero(pairs.weight)),
        "ridge": ridge, "held_out_loss": held_out, "levels": list(cuts.levels), **asdict(settings),
    }  # fmt: skip
