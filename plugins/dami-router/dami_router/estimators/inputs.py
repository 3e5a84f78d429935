"""What is known of queries before training, and the features that a trained estimator makes of it.

`Inputs` are plain numbers and an encoder's vectors. A `FeatureMap` is fitted on the inputs of the training queries:
steps at quantiles of the numbers (`basis`), and IDF weights of the words (`words`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dami_router.errors import MisuseError
from dami_router.estimators.basis import Basis
from dami_router.estimators.features import STATISTICS, Encoder, statistics
from dami_router.estimators.linear import Design
from dami_router.estimators.log_probs import EstimationError
from dami_router.estimators.sparse import SparseRows
from dami_router.estimators.word_weights import WordWeights

__all__ = ["FeatureMap", "Inputs", "read_inputs"]

Floats = NDArray[np.float64]
_TEXT = 12.0
"""The length of a text's vector. The steps of 19 numbers together are about as long."""


@dataclass(frozen=True)
class Inputs:
    """Of each query: `numbers` (queries, statistics and evidence), and the encoder's `vectors`."""

    numbers: Floats
    vectors: Floats | SparseRows

    def rows(self, index: NDArray[np.intp]) -> Inputs:
        """Return the inputs of some queries; `index` rises."""
        sparse = isinstance(self.vectors, SparseRows)
        return Inputs(self.numbers[index], self.vectors.rows(index) if sparse else self.vectors[index])  # type: ignore[union-attr,index]


def read_inputs(
    texts: Sequence[str], encoder: Encoder, evidence: Sequence[Mapping[str, float]] = (), names: Sequence[str] = ()
) -> Inputs:
    """Return the inputs of texts; `evidence` has the numbers of `names` for each text.

    Raises EstimationError if evidence is missing or not a finite number, or if the encoder fails.
    """
    plain = np.array([statistics(text) for text in texts]).reshape(len(texts), len(STATISTICS))
    if names:
        if len(evidence) != len(texts):
            raise MisuseError(f"trained with {', '.join(names)}: expected it for each of {len(texts)} queries")
        more = np.array([[_known(one, name) for name in names] for one in evidence])
        plain = np.concatenate([plain, more.reshape(len(texts), len(names))], axis=1)
    return Inputs(plain, encoder.encode(texts))


def _known(evidence: Mapping[str, float | str], name: str) -> float:
    value = evidence.get(name)
    if not isinstance(value, int | float) or not np.isfinite(value):
        raise EstimationError(f"trained with `{name}`, which is unknown for this query")
    return float(value)


@dataclass(frozen=True)
class FeatureMap:
    """From inputs to features; `words` is None where the encoder's vectors are dense."""

    basis: Basis
    words: WordWeights | None

    @classmethod
    def fit(cls, inputs: Inputs, knots: int) -> FeatureMap:
        """Fit on the inputs of the training queries, without labels."""
        sparse = isinstance(inputs.vectors, SparseRows)
        return cls(Basis.fit(inputs.numbers, knots), WordWeights.fit(inputs.vectors) if sparse else None)  # type: ignore[arg-type]

    def design(self, inputs: Inputs) -> Design:
        """Return the features of queries."""
        steps = self.basis.expand(inputs.numbers)
        if isinstance(inputs.vectors, SparseRows):
            assert self.words is not None
            found = self.words.vectors(inputs.vectors)
            return Design(steps, found.scaled(_TEXT * found.values))
        none = SparseRows.of([{}] * len(steps), 0)
        return Design(np.concatenate([steps, _TEXT * inputs.vectors], axis=1), none)
