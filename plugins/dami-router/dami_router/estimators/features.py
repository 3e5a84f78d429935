"""The features of a query for a trained estimator: plain numbers, and a vector from an encoder.

The numbers (`statistics`) are lengths and counts that hold for any language. The vector comes from
an `Encoder`; the default, `HashedText`, counts words and pairs of words in a fixed number of
buckets. Neither needs a download or a seed: the same text gives the same features on every machine.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dami_router.estimators.sparse import SparseRows

    Floats = NDArray[np.float64]

__all__ = ["STATISTICS", "Encoder", "HashedText", "statistics"]

LONGEST = 8000
"""Characters of a query that are read; of a longer one, the first and last half of this many."""

_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|[^\w\s]")

STATISTICS = (
    "characters", "words", "numbers", "distinct_numbers", "sentences", "word_length", "word_variety", "percents",
    "decimals", "slashes", "commas", "questions", "longest_number", "lines", "capitals", "symbols", "plus", "minus",
    "compared",
)  # fmt: skip
"""The names of the plain numbers, in order; counts enter as log(1 + count)."""


class Encoder(Protocol):
    """Something that turns texts into vectors of a fixed length."""

    @property
    def dimensions(self) -> int:
        """The vectors' length."""
        ...

    @property
    def remote(self) -> bool:
        """Whether `encode` calls a server or runs a model, and must not hold up other requests."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return what is needed to recreate this encoder, as JSON: at least its `kind`."""
        ...

    def encode(self, texts: Sequence[str]) -> Floats | SparseRows:
        """Return one row per text: numbers of at most unit length, or sparse counts; EstimationError on failure."""
        ...


class HashedText:
    """Counts of words and pairs of neighbouring words in `dimensions` buckets; all numbers count as one word."""

    remote = False

    def __init__(self, dimensions: int = 1 << 18) -> None:
        self.dimensions = dimensions

    def describe(self) -> Mapping[str, Any]:
        """Return the kind and the number of buckets."""
        return {"kind": "hashed", "dimensions": self.dimensions}

    def encode(self, texts: Sequence[str]) -> SparseRows:
        """Return the counts of each text; a text without words has none."""
        from dami_router.estimators.sparse import SparseRows

        return SparseRows.of([self._counts(text) for text in texts], self.dimensions)

    def _counts(self, text: str) -> dict[int, int]:
        words = ["#" if word[0].isdigit() else word.lower() for word in _TOKEN.findall(_ends(text))]
        counts: dict[int, int] = {}
        for gram in (*words, *map(" ".join, pairwise(words))):
            # crc32 is the same everywhere, unlike hash().
            bucket = zlib.crc32(gram.encode("utf-8", "replace")) % self.dimensions
            counts[bucket] = counts.get(bucket, 0) + 1
        return counts


def statistics(text: str) -> list[float]:
    """Return the plain numbers of a text, in the order of `STATISTICS`; all finite, for any text."""
    from math import log1p

    seen = _ends(text)
    tokens = _TOKEN.findall(seen)
    numbers = [token for token in tokens if token[0].isdigit()]
    words = [token for token in tokens if token[0].isalpha()]
    symbols = [token for token in tokens if not token[0].isalnum()]
    return [
        log1p(len(text)),
        log1p(len(words)),
        log1p(len(numbers)),
        log1p(len(set(numbers))),
        log1p(sum(map(symbols.count, ".?!"))),
        sum(map(len, words)) / max(len(words), 1),
        len({word.lower() for word in words}) / max(len(words), 1),
        log1p(symbols.count("%") + seen.lower().count("percent")),
        log1p(sum("." in number for number in numbers)),
        log1p(symbols.count("/")),
        log1p(symbols.count(",")),
        log1p(symbols.count("?")),
        log1p(max(map(len, numbers), default=0)),
        log1p(text.count("\n")),
        log1p(sum(word[0].isupper() for word in words)),
        log1p(len(symbols)),
        log1p(symbols.count("+")),
        log1p(symbols.count("-")),
        log1p(symbols.count("<") + symbols.count(">")),
    ]


def _ends(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST // 2] + "\n" + text[-LONGEST // 2 :]
