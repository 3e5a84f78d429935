"""An encoder in this process: a sentence-transformers model in a local folder, with weights as safetensors.

Nothing is downloaded and no code of the folder is run. sentence-transformers (and with it torch) is imported when the
first text is encoded. Which folder is used is the user's decision, never a trained estimator's: it stores the model's
fingerprint, and another model is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dami_router.errors import FailureError, MisuseError
from dami_router.estimators.log_probs import EstimationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["LocalEncoder"]

_WEIGHTS = "*.safetensors"


class LocalEncoder:
    """Embeddings of the model in `folder`, on the CPU; a `fingerprint` refuses any other model."""

    remote = True

    def __init__(self, folder: Path, fingerprint: str | None = None) -> None:
        self._folder, self._model = folder, None
        weights = sorted(folder.glob(_WEIGHTS))
        if not weights or not (folder / "modules.json").is_file():
            raise MisuseError(
                f"{folder}: not a sentence-transformers model: expected modules.json and {_WEIGHTS} in it",
                hint="download one first, for example with `hf download`",
            )
        self._fingerprint = _digest([folder / "modules.json", *weights])
        if fingerprint is not None and fingerprint != self._fingerprint:
            raise MisuseError(
                f"{folder}: another model than the one that the estimator was trained with",
                hint="set DAMI_EMBEDDINGS_MODEL to its folder",
            )

    @property
    def dimensions(self) -> int:
        """The length of the vectors."""
        return int(self.encode(["dimensions"]).shape[1])

    def describe(self) -> Mapping[str, Any]:
        """Return the kind, the model's name and fingerprint, and the length, without the path."""
        return {
            "kind": "local", "model": self._folder.resolve().name, "fingerprint": self._fingerprint,
            "dimensions": self.dimensions,
        }  # fmt: skip

    def encode(self, texts: Sequence[str]) -> Floats:
        """Return one unit vector per text; raises EstimationError if the model fails."""
        import numpy as np

        model = self._loaded()
        try:
            found = model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        except Exception as error:
            # A model may fail in its own ways. The message may contain the query.
            raise EstimationError(f"embeddings: the model failed: {type(error).__name__}") from None
        vectors = np.asarray(found, dtype=np.float64)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise EstimationError("embeddings: the model returned no vector for each text")
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: Floats = vectors / np.where(length > 0, length, 1.0)
        return unit

    def _loaded(self) -> Any:
        if self._model is None:
            try:
                from sentence_transformers import SentenceTransformer
            except ImportError:
                raise FailureError(
                    "local embeddings need sentence-transformers", hint="pip install 'dami-router[embeddings]'"
                ) from None
            try:
                self._model = SentenceTransformer(
                    str(self._folder), device="cpu", local_files_only=True, trust_remote_code=False,
                    model_kwargs={"use_safetensors": True},
                )  # fmt: skip
            except Exception as error:
                raise FailureError(f"{self._folder}: cannot be loaded: {type(error).__name__}: {error}") from None
        return self._model


def _digest(files: Sequence[Path]) -> str:
    """Return 16 hexadecimal digits over the files' contents; what modules.json says decides how texts are pooled."""
    found = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as data:
                found.update(hashlib.file_digest(data, "sha256").digest())
        except OSError as error:
            raise FailureError(f"{file}: cannot be read: {error.strerror}") from None
    return found.hexdigest()[:16]
