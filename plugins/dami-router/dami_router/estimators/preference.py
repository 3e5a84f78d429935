"""The trained estimator: λ(q) from the text of a query, learned from preferences between graded answers.

μ and κ come from an ideal-point Bradley–Terry model (`bradley_terry`), λ from μ by `cuts`. A trained
estimator is a folder: `estimator.json` (its kind and how it was trained) and `weights.safetensors`. It is
read as untrusted input: sizes, names, shapes and ranges are checked, and nothing in it is executed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dami_router.errors import MisuseError
from dami_router.estimators.basis import Basis
from dami_router.estimators.bradley_terry import ideal
from dami_router.estimators.cuts import Cuts
from dami_router.estimators.estimator import AsksServers, Estimator
from dami_router.estimators.features import STATISTICS, Encoder, statistics
from dami_router.estimators.log_probs import EstimationError, Servers
from dami_router.estimators.query import Estimate, Query

__all__ = ["Preference", "numbers_of"]

Floats = NDArray[np.float64]
_GAIN = 2.0
"""Scale of the encoder's unit vector relative to the steps of the numbers."""


@dataclass(frozen=True)
class Preference:
    """A trained estimator.

    `parameters` are Bradley–Terry's [w, b, v, c] over the features; `evidence` names the numbers beyond the
    text that it was trained with (`confidence`, or none); `asks` provides them for an estimate. `about`
    describes the training; `trained_on` has the fingerprints of its queries.
    """

    encoder: Encoder
    basis: Basis
    parameters: Floats
    cuts: Cuts
    evidence: tuple[str, ...] = ()
    asks: Estimator | None = None
    name: str = "preference"
    about: Mapping[str, Any] = field(default_factory=dict)
    trained_on: frozenset[str] = frozenset()

    @property
    def timeout(self) -> float | None:
        """Seconds for an estimate if servers are called for the evidence; None if the router's timeout applies."""
        return getattr(self.asks, "timeout", None) if self.evidence else None

    def bind(self, servers: Servers) -> Preference:
        """Return the estimator with servers for its evidence."""
        return replace(self, asks=self.asks.bind(servers)) if isinstance(self.asks, AsksServers) else self

    async def estimate(self, query: Query) -> Estimate:
        """Return λ(q), with μ, κ and the evidence; raises EstimationError if the evidence is unavailable."""
        evidence = await self._evidence(query)
        if self.encoder.remote:
            mu, kappa = await asyncio.to_thread(self.ideal, [query.text], [evidence])
        else:
            mu, kappa = self.ideal([query.text], [evidence])
        point = float(mu[0])
        return Estimate(self.cuts(point), self.name, {"mu": point, "kappa": float(kappa[0]), **evidence})

    def ideal(self, texts: Sequence[str], evidence: Sequence[Mapping[str, float]] = ()) -> tuple[Floats, Floats]:
        """Return μ (any finite number) and κ > 0 for each text; `evidence` has the numbers for each text."""
        numbers = numbers_of(texts, evidence, self.evidence)
        return ideal(self.parameters, features(self.basis, numbers, self.encoder.encode(texts)))

    def lambdas(self, texts: Sequence[str], evidence: Sequence[Mapping[str, float]] = ()) -> list[float]:
        """Return λ ∈ [0, 1] for each text."""
        return [self.cuts(float(mu)) for mu in self.ideal(texts, evidence)[0]]

    async def _evidence(self, query: Query) -> dict[str, float]:
        if not self.evidence:
            return {}
        if self.asks is None:
            raise EstimationError(f"{self.name}: trained with {', '.join(self.evidence)}, which is not available here")
        found = (await self.asks.estimate(query)).evidence
        return {name: _known(found, name, self.name) for name in self.evidence}


def features(basis: Basis, numbers: Floats, vectors: Floats) -> Floats:
    """Return the model's features: the expanded numbers, followed by the encoder's vectors."""
    return np.concatenate([basis.expand(numbers), _GAIN * vectors], axis=1)


def numbers_of(texts: Sequence[str], evidence: Sequence[Mapping[str, float]], names: Sequence[str]) -> Floats:
    """Return the plain numbers of each text (queries, statistics and evidence).

    Raises EstimationError if evidence is missing or not a finite number.
    """
    plain = np.array([statistics(text) for text in texts]).reshape(len(texts), len(STATISTICS))
    if not names:
        return plain
    if len(evidence) != len(texts):
        raise MisuseError(f"trained with {', '.join(names)}: expected it for each of {len(texts)} queries")
    more = np.array([[_known(one, name, "preference") for name in names] for one in evidence])
    return np.concatenate([plain, more.reshape(len(texts), len(names))], axis=1)


def _known(evidence: Mapping[str, float | str], name: str, who: str) -> float:
    value = evidence.get(name)
    if not isinstance(value, int | float) or not np.isfinite(value):
        raise EstimationError(f"{who}: trained with `{name}`, which is unknown for this query")
    return float(value)
