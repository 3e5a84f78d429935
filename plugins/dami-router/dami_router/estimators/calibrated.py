"""The file that `dami calibrate` writes: the map from score to λ for each form of confidence.

One JSON object, read as untrusted input: bounded size, no unknown fields, finite numbers only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dami_router.errors import FailureError, MisuseError
from dami_router.estimators.quantile import QuantileMap
from dami_router.shared.durable import write_atomically

__all__ = ["FORMS", "MOST_SCORES", "CalibratedMap", "Form"]

Form = Literal["discrepancy", "entropy", "instruct"]
FORMS: tuple[Form, ...] = get_args(Form)
"""The forms of confidence, the most informative first."""

MOST_SCORES = 1001
"""If there are more calibration scores than this, only their quantiles are kept."""

_MOST_BYTES = 4 << 20
_Score = Annotated[float, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _FormMap(_Strict):
    mean_lambda: float = Field(gt=0, lt=1)
    max_lambda: float = Field(gt=0, le=1)
    scores: list[_Score] = Field(min_length=1, max_length=MOST_SCORES)


class _File(_Strict):
    schema_version: Literal[1]
    kind: Literal["confidence-map"]
    tokens: int = Field(ge=1, le=1024)
    forms: dict[Form, _FormMap] = Field(min_length=1)
    about: dict[str, Any]


@dataclass(frozen=True)
class CalibratedMap:
    """A quantile map for each measured form, for probes of `tokens` tokens; `about` is informational."""

    tokens: int
    scores: Mapping[Form, QuantileMap]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, form: Form, score: float) -> float:
        """Return λ in [0, 1]; KeyError for a form that was not measured."""
        return self.scores[form](score)

    def save(self, path: Path) -> None:
        """Write the file atomically; raises MisuseError if it exists, FailureError if it cannot be written."""
        if path.exists():
            raise MisuseError(f"{path}: already exists; nothing was written", hint="choose another file, or remove it")
        forms = {
            form: _FormMap(mean_lambda=m.mean_lambda, max_lambda=m.max_lambda, scores=_thinned(m.scores))
            for form, m in self.scores.items()
        }
        whole = _File(schema_version=1, kind="confidence-map", tokens=self.tokens, forms=forms, about=dict(self.about))
        try:
            write_atomically(path, whole.model_dump_json(indent=1).encode() + b"\n")
        except OSError as error:
            raise FailureError(f"{path}: cannot be written: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path) -> CalibratedMap:
        """Read a file; raises MisuseError if it does not exist, FailureError if it is not such a map."""
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise FailureError(f"{path}: larger than {_MOST_BYTES >> 20} MiB; expected a map of `dami calibrate`")
            said = _File.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            hint = "omit `map` for now; `dami calibrate` writes one"
            raise MisuseError(f"{path}: no such file; expected a map", hint=hint) from None
        except OSError as error:
            raise FailureError(f"{path}: cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the top"
            raise FailureError(
                f"{path}: {place[:200]}: {first['msg']}", hint="not a map of `dami calibrate`?"
            ) from None
        try:
            maps = {form: QuantileMap.fit(m.scores, m.mean_lambda, m.max_lambda) for form, m in said.forms.items()}
        except MisuseError as error:
            raise FailureError(f"{path}: {error.message}") from None
        return cls(said.tokens, maps, said.about)


def _thinned(scores: tuple[float, ...]) -> list[float]:
    if len(scores) <= MOST_SCORES:
        return list(scores)
    last = len(scores) - 1
    return [scores[round(i * last / (MOST_SCORES - 1))] for i in range(MOST_SCORES)]
