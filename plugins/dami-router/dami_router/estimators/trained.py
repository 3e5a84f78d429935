"""A trained estimator: λ(q) from the text of a query, learned from graded answers.

A model (`preference` or `neighbours`) estimates what each variant gains and costs on a query, and one price for
tokens decides (`decision`). A trained estimator is a folder: `estimator.json` (its kind and how it was trained) and
`weights.safetensors`. It is read as untrusted input: sizes, names, shapes and ranges are checked, and nothing in it is
executed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dami_router.estimators.decision import choose, tie_breaks
from dami_router.estimators.estimator import AsksServers, Estimator
from dami_router.estimators.features import Encoder
from dami_router.estimators.hidden_encoder import HiddenEncoder
from dami_router.estimators.inputs import FeatureMap, Inputs, read_inputs
from dami_router.estimators.linear import Design
from dami_router.estimators.log_probs import EstimationError, Servers
from dami_router.estimators.query import Estimate, Query
from dami_router.rollouts.folds import fingerprint

__all__ = ["CrossFit", "Model", "Trained", "Values"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Values:
    """What is expected of each variant on each query, up to a constant of the query.

    `gain`: accuracy, and `cost`: tokens as a fraction of the most expensive variant's mean; both (queries, variants).
    """

    gain: Floats
    cost: Floats


class Model(Protocol):
    """The learned part of an estimator."""

    def values(self, design: Design) -> Values:
        """Return what is expected of each variant on each query."""
        ...


@dataclass(frozen=True)
class CrossFit:
    """A model, what it expects of each training query in the fold that held it out, and how well that fits.

    `explained` is the held-out fraction of the variance of the gains, 0 at the mean, at most 1. `chosen` is what was
    chosen on the folds.
    """

    model: Model
    held_out: Values
    explained: float
    chosen: Mapping[str, Any]

    @classmethod
    def of(cls, model: Model, held: Floats, targets: Floats, chosen: Mapping[str, Any]) -> CrossFit:
        """Compare held-out expectations with the targets, both gains and then costs (queries, 2·variants)."""
        half = targets.shape[1] // 2
        gains = targets[:, :half]
        total = float(((gains - gains.mean(axis=0)) ** 2).sum())
        explained = 1.0 - float(((gains - held[:, :half]) ** 2).sum()) / total if total > 0 else 0.0
        return cls(model, Values(held[:, :half], held[:, half:]), explained, chosen)


@dataclass(frozen=True)
class Trained:
    """A trained estimator of the λ of rising `lambdas`.

    `price` is the expected accuracy that a mean answer of the most expensive variant must gain, and `tokens` that mean.
    `evidence` names the numbers beyond the text that it was trained with (`confidence`, or none); `asks` provides them
    for an estimate. `about` describes the training; `trained_on` has the fingerprints of its queries.
    """

    encoder: Encoder
    features: FeatureMap
    model: Model
    lambdas: tuple[float, ...]
    price: float
    tokens: float
    evidence: tuple[str, ...] = ()
    asks: Estimator | None = None
    name: str = "preference"
    about: Mapping[str, Any] = field(default_factory=dict)
    trained_on: frozenset[str] = frozenset()

    @property
    def timeout(self) -> float | None:
        """Seconds for an estimate if servers are called for the evidence; None if the router's timeout applies."""
        if isinstance(self.encoder, HiddenEncoder):
            return max(self.encoder.timeout, getattr(self.asks, "timeout", 0.0) if self.evidence else 0.0)
        return getattr(self.asks, "timeout", None) if self.evidence else None

    def bind(self, servers: Servers) -> Trained:
        """Return the estimator with servers for its evidence."""
        asks = self.asks.bind(servers) if isinstance(self.asks, AsksServers) else self.asks
        encoder = self.encoder.bind(servers) if isinstance(self.encoder, HiddenEncoder) else self.encoder
        return replace(self, asks=asks, encoder=encoder)

    async def estimate(self, query: Query) -> Estimate:
        """Return λ(q), with what it is expected to gain and cost over the smallest λ, and the evidence.

        Raises EstimationError if the evidence is unavailable.
        """
        evidence = await self._evidence(query)
        if isinstance(self.encoder, HiddenEncoder):
            known = replace(self, encoder=await self.encoder.read(query))
            found = known.of_texts([query.text], [evidence])
        elif self.encoder.remote:
            found = await asyncio.to_thread(self.of_texts, [query.text], [evidence])
        else:
            found = self.of_texts([query.text], [evidence])
        (column,) = self.choices(found, [query.text])
        gain = float(found.gain[0, column] - found.gain[0, 0])
        more = self.tokens * float(found.cost[0, column] - found.cost[0, 0])
        return Estimate(self.lambdas[column], self.name, {"gain": gain, "extra_tokens": more, **evidence})

    def of_texts(self, texts: Sequence[str], evidence: Sequence[Mapping[str, float]] = ()) -> Values:
        """Return what is expected of each variant on each text; `evidence` has the numbers for each text."""
        return self.of_inputs(read_inputs(texts, self.encoder, evidence, self.evidence))

    def of_inputs(self, inputs: Inputs) -> Values:
        """Return what is expected of each variant on queries whose inputs were read before."""
        return self.model.values(self.features.design(inputs))

    def choices(self, values: Values, texts: Sequence[str], price: float | None = None) -> NDArray[np.intp]:
        """Return the index in `lambdas` for each query, at the estimator's price or another."""
        ties = tie_breaks([fingerprint(text) for text in texts])
        return choose(values.gain, values.cost, self.price if price is None else price, ties)

    def lambdas_of(self, texts: Sequence[str], evidence: Sequence[Mapping[str, float]] = ()) -> list[float]:
        """Return λ ∈ [0, 1] for each text."""
        return [self.lambdas[i] for i in self.choices(self.of_texts(texts, evidence), texts)]

    async def _evidence(self, query: Query) -> dict[str, float]:
        if not self.evidence:
            return {}
        if self.asks is None:
            raise EstimationError(f"{self.name}: trained with {', '.join(self.evidence)}, which is not available here")
        found = (await self.asks.estimate(query)).evidence
        return {name: _known(found, name, self.name) for name in self.evidence}


def _known(evidence: Mapping[str, float | str], name: str, who: str) -> float:
    value = evidence.get(name)
    if not isinstance(value, int | float) or not np.isfinite(value):
        raise EstimationError(f"{who}: trained with `{name}`, which is unknown for this query")
    return float(value)
