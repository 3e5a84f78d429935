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
from dami_router.estimators.cuts import Cuts
from dami_router.estimators.estimator import Estimator
from dami_router.estimators.features import STATISTICS, Encoder, HashedText
from dami_router.estimators.preference import Preference

__all__ = ["DESCRIPTION", "load", "save"]

DESCRIPTION = "estimator.json"
WEIGHTS = "weights.safetensors"
_MOST_BYTES = 64 << 20

Floats = NDArray[np.float64]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Encoder(_Strict):
    kind: Literal["hashed", "endpoint"]
    dimensions: int = Field(ge=1, le=65536)
    model: str | None = Field(default=None, max_length=256)


class _Description(_Strict):
    schema_version: Literal[1]
    kind: Literal["preference"]
    name: Name
    statistics: list[Name]
    evidence: list[Name] = Field(max_length=16)
    encoder: _Encoder
    edges: list[float] = Field(max_length=1000)
    levels: list[Share] = Field(min_length=1, max_length=1001)
    about: dict[str, Any]
    trained_on: list[Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]]


def save(estimator: Preference, folder: Path) -> None:
    """Write an estimator to a new folder atomically; raises MisuseError if the folder exists."""
    from safetensors.numpy import save as to_bytes

    if folder.exists():
        raise MisuseError(f"{folder}: already exists; nothing was written", hint="choose a new folder, or remove it")
    basis = estimator.basis
    tensors = {
        "parameters": estimator.parameters, "mean": basis.mean, "scale": basis.scale, "knots": basis.knots,
        "centre": basis.centre,
    }  # fmt: skip
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


def load(folder: Path, *, asks: Estimator | None = None, embeddings_url: str | None = None) -> Preference:
    """Read an estimator.

    `asks` provides the evidence beyond the text that it was trained with; `embeddings_url` is the address of its
    encoder's model. Raises MisuseError if there is none, FailureError if it is damaged or not an estimator.
    """
    said = _read_description(folder / DESCRIPTION)
    if said.statistics != list(STATISTICS):
        raise FailureError(f"{folder}: trained with the features of another version", hint="train it again")
    tensors = _tensors(folder / WEIGHTS)
    encoder = _encoder(said.encoder, embeddings_url)
    basis = Basis(tensors["mean"], tensors["scale"], tensors["knots"], tensors["centre"])
    numbers = len(said.statistics) + len(said.evidence)
    fits = (
        basis.mean.shape == basis.scale.shape == (numbers,)
        and bool((basis.scale > 0).all())
        and basis.knots.ndim == 2
        and len(basis.knots) == numbers
        and basis.centre.shape == (basis.width - numbers,)
        and tensors["parameters"].shape == (2 * (basis.width + encoder.dimensions) + 2,)
        and len(said.levels) == len(said.edges) + 1
        and said.edges == sorted(said.edges)
        and said.levels == sorted(said.levels)
    )
    if not fits:
        raise FailureError(f"{folder}: {WEIGHTS} and {DESCRIPTION} do not match", hint="train it again")
    return Preference(
        encoder, basis, tensors["parameters"], Cuts(tuple(said.edges), tuple(said.levels)), tuple(said.evidence), asks,
        said.name, said.about, frozenset(said.trained_on),
    )  # fmt: skip


def _description(estimator: Preference) -> Mapping[str, Any]:
    return {
        "schema_version": 1, "kind": "preference", "name": estimator.name, "statistics": list(STATISTICS),
        "evidence": list(estimator.evidence), "encoder": dict(estimator.encoder.describe()),
        "edges": list(estimator.cuts.edges), "levels": list(estimator.cuts.levels), "about": dict(estimator.about),
        "trained_on": sorted(estimator.trained_on),
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
        raise FailureError(f"{file}: {place[:200]}: {first['msg']}", hint="not a trained estimator?") from None


def _tensors(file: Path) -> dict[str, Floats]:
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        if file.stat().st_size > _MOST_BYTES:
            raise FailureError(f"{file}: larger than {_MOST_BYTES >> 20} MiB; expected a trained estimator")
        tensors: dict[str, Floats] = from_bytes(file.read_bytes())
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise FailureError(f"{file}: not readable as safetensors: {error}") from None
    expected = {"parameters", "mean", "scale", "knots", "centre"}
    if set(tensors) != expected:
        raise FailureError(f"{file}: expected the tensors {', '.join(sorted(expected))}")
    for name, tensor in tensors.items():
        bad = np.isnan(tensor).any() if name == "knots" else not np.isfinite(tensor).all()
        if tensor.dtype != np.float64 or bad:
            raise FailureError(f"{file}: `{name}` expects finite numbers in float64")
    return tensors


def _encoder(said: _Encoder, url: str | None) -> Encoder:
    if said.kind == "hashed":
        return HashedText(said.dimensions)
    from dami_router.estimators.embeddings import EndpointEncoder

    if url is None:
        raise MisuseError(
            f"trained on embeddings of `{said.model}`; the address of that model's server is not set",
            hint="set DAMI_EMBEDDINGS_URL, for example to http://127.0.0.1:8080/v1",
        )
    return EndpointEncoder(url, said.model or "", said.dimensions)
