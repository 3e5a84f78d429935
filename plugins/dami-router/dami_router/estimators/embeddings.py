"""An encoder behind an OpenAI-style embeddings endpoint: `POST {url}/embeddings`.

Texts leave this process, so the address comes from the user, never from a trained estimator's folder.
An API key is read from DAMI_EMBEDDINGS_KEY.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dami_router.errors import MisuseError
from dami_router.estimators.log_probs import EstimationError
from dami_router.shared.url_errors import reason_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dami_router.estimators.features import Encoder

    Floats = NDArray[np.float64]

__all__ = ["EndpointEncoder", "encoder_of"]

_BATCH = 64
_MOST_BYTES = 64 << 20


class EndpointEncoder:
    """Embeddings of `model` served at `url` (including `/v1`); if `dimensions` is None, the server is queried once."""

    remote = True

    def __init__(self, url: str, model: str, dimensions: int | None = None, *, timeout: float = 10.0) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise MisuseError(f"embeddings: expected an address such as http://127.0.0.1:8080/v1, found {url!r}")
        self._url, self._model, self._timeout = url.rstrip("/"), model, timeout
        self._dimensions = dimensions

    @property
    def dimensions(self) -> int:
        """The length of the vectors."""
        if self._dimensions is None:
            self._dimensions = len(self._ask(["dimensions"])[0])
        return self._dimensions

    def describe(self) -> Mapping[str, Any]:
        """Return the kind, the model and the length, without the address."""
        return {"kind": "endpoint", "model": self._model, "dimensions": self.dimensions}

    def encode(self, texts: Sequence[str]) -> Floats:
        """Return one unit vector per text; raises EstimationError if the server returns no valid ones."""
        import numpy as np

        rows = [row for i in range(0, len(texts), _BATCH) for row in self._ask(list(texts[i : i + _BATCH]))]
        if any(len(row) != self.dimensions for row in rows):
            raise EstimationError(f"embeddings: `{self._model}` expected vectors of length {self.dimensions}")
        vectors = np.array(rows, dtype=np.float64).reshape(len(texts), self.dimensions)
        if not np.isfinite(vectors).all():
            raise EstimationError(f"embeddings: `{self._model}` returned non-finite numbers")
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: Floats = vectors / np.where(length > 0, length, 1.0)
        return unit

    def _ask(self, texts: list[str]) -> list[list[float]]:
        body = json.dumps({"model": self._model, "input": texts, "encoding_format": "float"}).encode()
        headers = {"content-type": "application/json"}
        if key := os.environ.get("DAMI_EMBEDDINGS_KEY"):
            headers["authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self._url}/embeddings", body, headers)  # noqa: S310  (http or https)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:  # noqa: S310
                return _vectors(response.read(_MOST_BYTES), len(texts))
        except (OSError, http.client.HTTPException, urllib.error.URLError) as error:
            raise EstimationError(f"embeddings: {self._url} failed: {reason_of(error)}") from None


def _vectors(answer: bytes, count: int) -> list[list[float]]:
    """Return the vectors in the order of the texts, whatever the order in the response."""
    try:
        items = sorted(json.loads(answer)["data"], key=lambda item: int(item["index"]))
        vectors = [[float(number) for number in item["embedding"]] for item in items]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise EstimationError("embeddings: the response is not in OpenAI's form") from None
    if [int(item["index"]) for item in items] != list(range(count)):
        raise EstimationError(f"embeddings: expected {count} vectors, got {len(vectors)}")
    return vectors


def encoder_of(model: str | None) -> Encoder | None:
    """Return the encoder that `--embeddings` names: a model in a local folder, or one at $DAMI_EMBEDDINGS_URL.

    None for None. Raises MisuseError if it is neither.
    """
    if model is None:
        return None
    if Path(model).is_dir():
        from dami_router.estimators.local_embeddings import LocalEncoder

        return LocalEncoder(Path(model))
    url = os.environ.get("DAMI_EMBEDDINGS_URL")
    if not url:
        raise MisuseError(
            f"--embeddings: no folder `{model}`, and no server's address",
            hint="set DAMI_EMBEDDINGS_URL, for example to http://127.0.0.1:8080/v1, or name a local folder",
        )
    return EndpointEncoder(url, model)
