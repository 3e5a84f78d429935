"""A trained estimator on disk: `estimator.json` and `weights.safetensors` in one folder, no pickle.

Read as untrusted input: bounded sizes, no unknown fields, checked shapes and ranges, finite numbers
only. The address of an embeddings endpoint is never read from the folder: the user decides where
queries may be sent.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dami_router.errors import FailureError, MisuseError
from dami_router.estimators.basis import Basis
from dami_router.estimators.estimator import Estimator
from dami_router.estimators.features import STATISTICS, Encoder, HashedText
from dami_router.estimators.hidden_encoder import HiddenEncoder
from dami_router.estimators.inputs import FeatureMap
from dami_router.estimators.neighbours import COUNTS, Neighbours
from dami_router.estimators.preference import Preference
from dami_router.estimators.trained import Model, Trained
from dami_router.estimators.training import Method
from dami_router.estimators.word_weights import WordWeights

__all__ = ["DESCRIPTION", "load", "save"]

DESCRIPTION = "estimator.json"
WEIGHTS = "weights.safetensors"
_MOST_BYTES = 256 << 20

Floats = NDArray[np.float64]
Tensors = dict[str, NDArray[Any]]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]
_BASIS = ("mean", "scale", "knots", "centre")
_MODELS: dict[Method, dict[str, type[np.generic]]] = {
    "preference": {
        "dense": np.float64, "words": np.float32, "intercept": np.float64, "mix": np.float64, "base": np.float64,
    },
    "neighbours": {
        "dense": np.float32, "row": np.int32, "column": np.int32, "entries": np.float32, "targets": np.float32,
        "count": np.int32,
    },
}  # fmt: skip
"""The tensors of each model, with their types."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Encoder(_Strict):
    kind: Literal["hashed", "endpoint", "local", "hidden"]
    dimensions: int = Field(ge=1, le=1 << 18)
    model: str | None = Field(default=None, max_length=256)
    fingerprint: str | None = Field(default=None, pattern=r"^[0-9a-f]{16}$")


class _Description(_Strict):
    schema_version: Literal[2]
    kind: Method
    name: Name
    statistics: list[Name]
    evidence: list[Name] = Field(max_length=16)
    encoder: _Encoder
    lambdas: list[Share] = Field(min_length=2, max_length=1001)
    price: float = Field(ge=0)
    tokens: float = Field(ge=0)
    about: dict[str, Any]
    trained_on: list[Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]]


def save(estimator: Trained, folder: Path) -> None:
    """Write an estimator to a new folder atomically; raises MisuseError if the folder exists."""
    from safetensors.numpy import save as to_bytes

    if folder.exists():
        raise MisuseError(f"{folder}: already exists; nothing was written", hint="choose a new folder, or remove it")
    tensors = _tensors_of(estimator)
    text = json.dumps(_description(estimator), ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    files = {DESCRIPTION: text.encode(), WEIGHTS: to_bytes(tensors)}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    except OSError as error:
        raise FailureError(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        for name, data in files.items():
            with (partial / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        partial.chmod(0o755)
        partial.rename(folder)
    except OSError as error:
        raise FailureError(f"{folder}: cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(
    folder: Path,
    *,
    asks: Estimator | None = None,
    embeddings_url: str | None = None,
    embeddings_model: str | None = None,
) -> Trained:
    """Read an estimator.

    `asks` provides the evidence beyond the text that it was trained with; `embeddings_url` is the address of its
    encoder's model, `embeddings_model` the folder of a local one. Raises MisuseError if what it needs is missing,
    FailureError if it is damaged or not an estimator.
    """
    said = _read_description(folder / DESCRIPTION)
    if said.statistics != list(STATISTICS):
        raise FailureError(f"{folder}: trained with the features of another version", hint="train it again")
    tensors = _read_tensors(folder / WEIGHTS, said)
    encoder = _encoder(said.encoder, embeddings_url, embeddings_model)
    numbers = len(said.statistics) + len(said.evidence)
    features, model = _features(tensors, numbers), _model(tensors, said)
    if features is None or model is None or said.lambdas != sorted(set(said.lambdas)):
        raise FailureError(f"{folder}: {WEIGHTS} and {DESCRIPTION} do not match", hint="train it again")
    return Trained(
        encoder, features, model, tuple(said.lambdas), said.price, said.tokens, tuple(said.evidence), asks, said.name,
        said.about, frozenset(said.trained_on),
    )  # fmt: skip


def _features(tensors: Tensors, numbers: int) -> FeatureMap | None:
    """Return the feature map; None if its tensors do not fit each other."""
    basis = Basis(*(tensors[name] for name in _BASIS))
    fits = (
        basis.mean.shape == basis.scale.shape == (numbers,)
        and bool((basis.scale > 0).all())
        and basis.knots.ndim == 2
        and len(basis.knots) == numbers
        and basis.centre.shape == (basis.width - numbers,)
    )
    if not fits:
        return None
    if "buckets" not in tensors:
        return FeatureMap(basis, None)
    buckets, idf = tensors["buckets"].astype(np.intp), tensors["idf"]
    rising = buckets.ndim == 1 and bool((np.diff(buckets) > 0).all()) and (not len(buckets) or buckets[0] >= 0)
    return FeatureMap(basis, WordWeights(buckets, idf)) if rising and idf.shape == buckets.shape else None


def _model(tensors: Tensors, said: _Description) -> Model | None:
    """Return the model; None if its tensors do not fit the description or the features."""
    numbers = len(said.statistics) + len(said.evidence) + int(np.isfinite(tensors["knots"]).sum())
    numbers += 0 if "buckets" in tensors else said.encoder.dimensions
    words = len(tensors["buckets"]) if "buckets" in tensors else 0
    read = _neighbours if said.kind == "neighbours" else _preference
    return read(tensors, numbers, words, 2 * len(said.lambdas))


def _preference(tensors: Tensors, numbers: int, words: int, outputs: int) -> Model | None:
    model = Preference(*(tensors[name] for name in ("dense", "words", "intercept", "mix", "base")))
    components = len(model.intercept) if model.intercept.ndim == 1 else -1
    fits = (
        model.dense.shape == (components, numbers)
        and model.words.shape == (components, words)
        and model.mix.shape == (components, outputs)
        and model.base.shape == (outputs,)
    )
    return model if fits else None


def _neighbours(tensors: Tensors, numbers: int, words: int, outputs: int) -> Model | None:
    dense, row, column, entries, targets = (tensors[name] for name in ("dense", "row", "column", "entries", "targets"))
    count = tensors["count"]
    fits = (
        targets.ndim == 2
        and targets.shape[1] == outputs
        and len(targets) > 0
        and dense.shape == (len(targets), numbers)
        and row.ndim == 1
        and row.shape == column.shape == entries.shape
        and bool((np.diff(row) >= 0).all())
        and (not len(row) or (row[0] >= 0 and row[-1] < len(targets)))
        and bool(((column >= 0) & (column < words)).all())
        and count.shape == (1,)
        and int(count[0]) in COUNTS
    )
    return Neighbours(dense, row, column, entries, targets, words, int(count[0])) if fits else None


def _tensors_of(estimator: Trained) -> Tensors:
    basis, words, model = estimator.features.basis, estimator.features.words, estimator.model
    tensors: Tensors = {name: getattr(basis, name) for name in _BASIS}
    types = _MODELS[_kind(estimator)]
    tensors |= {name: np.atleast_1d(np.asarray(getattr(model, name), dtype=kind)) for name, kind in types.items()}
    if words is not None:
        tensors |= {"buckets": words.buckets.astype(np.int32), "idf": words.idf}
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def _kind(estimator: Trained) -> Method:
    return "neighbours" if isinstance(estimator.model, Neighbours) else "preference"


def _description(estimator: Trained) -> Mapping[str, Any]:
    return {
        "schema_version": 2, "kind": _kind(estimator), "name": estimator.name, "statistics": list(STATISTICS),
        "evidence": list(estimator.evidence), "encoder": dict(estimator.encoder.describe()),
        "lambdas": list(estimator.lambdas), "price": estimator.price, "tokens": estimator.tokens,
        "about": dict(estimator.about), "trained_on": sorted(estimator.trained_on),
    }  # fmt: skip


def _read_description(file: Path) -> _Description:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise FailureError(f"{file}: larger than {_MOST_BYTES >> 20} MiB; expected a trained estimator")
        return _Description.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise MisuseError(
            f"{file}: no such file; expected the folder of a trained estimator", hint="`dami train` writes one"
        ) from None
    except OSError as error:
        raise FailureError(f"{file}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the top"
        old = place == "schema_version"
        hint = "trained by another version of dami-router? train it again" if old else "not a trained estimator?"
        raise FailureError(f"{file}: {place[:200]}: {first['msg']}", hint=hint) from None


def _read_tensors(file: Path, said: _Description) -> Tensors:
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        if file.stat().st_size > _MOST_BYTES:
            raise FailureError(f"{file}: larger than {_MOST_BYTES >> 20} MiB; expected a trained estimator")
        tensors: Tensors = from_bytes(file.read_bytes())
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise FailureError(f"{file}: not readable as safetensors: {error}") from None
    types = dict.fromkeys(_BASIS, np.float64) | _MODELS[said.kind]
    if said.encoder.kind == "hashed":
        types |= {"buckets": np.int32, "idf": np.float32}
    expected = set(types)
    if set(tensors) != expected:
        raise FailureError(f"{file}: expected the tensors {', '.join(sorted(expected))}")
    for name, tensor in tensors.items():
        bad = np.isnan(tensor).any() if name == "knots" else not np.isfinite(tensor).all()
        if tensor.dtype != types[name] or bad:
            raise FailureError(f"{file}: `{name}` expects finite numbers in {np.dtype(types[name]).name}")
    return tensors


def _encoder(said: _Encoder, url: str | None, folder: str | None) -> Encoder:
    if said.kind == "hashed":
        return HashedText(said.dimensions)
    if said.kind == "hidden":
        return HiddenEncoder(said.dimensions, said.model or "")
    if said.kind == "local":
        from dami_router.estimators.local_embeddings import LocalEncoder

        if folder is None:
            raise MisuseError(
                f"trained on embeddings of the local model `{said.model}`; its folder is not set",
                hint="set DAMI_EMBEDDINGS_MODEL to the model's folder",
            )
        return LocalEncoder(Path(folder), said.fingerprint or "")
    from dami_router.estimators.embeddings import EndpointEncoder

    if url is None:
        raise MisuseError(
            f"trained on embeddings of `{said.model}`; the address of that model's server is not set",
            hint="set DAMI_EMBEDDINGS_URL, for example to http://127.0.0.1:8080/v1",
        )
    return EndpointEncoder(url, said.model or "", said.dimensions)
