"""`frontier.json`: the points of a report, for other programs and for the page at `/ui`. Needs no numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dami_router.errors import MisuseError
from dami_router.rollouts.grid import Figure, Point, dominated

__all__ = ["FRONTIER_FILE", "FrontierFile", "FrontierPoint", "Range", "frontier_of", "load_frontier"]

FRONTIER_FILE = "frontier.json"
_MAX_BYTES = 1 << 20

Kind = Literal["variant", "capped", "routed", "oracle"]
Name = Annotated[str, Field(max_length=200)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(_Strict):
    """A mean with its 95 % interval; `low` and `high` are None where there is none."""

    mean: Count
    low: Count | None = None
    high: Count | None = None


class FrontierPoint(_Strict):
    """One way to answer: one variant for every query, capped thinking, an estimator (`routed`), or the oracle."""

    kind: Kind
    name: Name
    lambda_: Share | None = Field(alias="lambda", description="λ, or its mean over the queries.")
    accuracy: Range
    tokens: Range
    dominated: bool = False


class FrontierFile(_Strict):
    """Accuracy and mean tokens of variants and estimators on the same queries."""

    schema_version: Literal[1] = 1
    title: Name
    queries: int | None = Field(default=None, ge=1)
    points: list[FrontierPoint] = Field(max_length=1000)

    def text(self) -> str:
        """Return the file's JSON text."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


def frontier_of(
    title: str, queries: int, lambdas: Sequence[float], static: Sequence[Point], others: Mapping[str, Point],
    capped: Mapping[str, Point] | None = None,
) -> FrontierFile:  # fmt: skip
    """Return the file for one point for each static λ, cap, and other way of choosing, as in `draw_frontier`.

    A variant is dominated by another variant, a cap by a variant or another cap.
    """
    capped = capped or {}
    weak = dominated([*static, *capped.values()])[len(static) :]
    variants = [
        _point("variant", f"λ = {x:g}", point, beaten)
        for x, point, beaten in zip(lambdas, static, dominated(static), strict=True)
    ]
    caps = [_point("capped", name, point, beaten) for (name, point), beaten in zip(capped.items(), weak, strict=True)]
    routed = [_point("oracle" if name == "oracle" else "routed", name, point) for name, point in others.items()]
    return FrontierFile(title=title[:200], queries=queries, points=[*variants, *caps, *routed])


def load_frontier(path: Path) -> FrontierFile:
    """Read a report's folder, or its `frontier.json`; raises MisuseError where that is not one."""
    file = path / FRONTIER_FILE if path.is_dir() else path
    hint = "`dami eval --report DIR` and `dami demo` write one"
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise MisuseError(f"{file}: larger than {_MAX_BYTES >> 20} MiB; expected the points of a report", hint=hint)
        return FrontierFile.model_validate_json(file.read_bytes())
    except OSError as error:
        raise MisuseError(f"{file}: cannot be read: {error.strerror}", hint=hint) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the top"
        raise MisuseError(f"{file}: {place[:200]}: {first['msg']}", hint=hint) from None


def _point(kind: Kind, name: str, point: Point, beaten: bool = False) -> FrontierPoint:
    return FrontierPoint.model_validate(
        {
            "kind": kind, "name": name[:200], "lambda": point.mean_lambda, "accuracy": _range(point.accuracy),
            "tokens": _range(point.tokens), "dominated": beaten,
        }
    )  # fmt: skip


def _range(figure: Figure) -> Range:
    return Range(mean=figure.mean, low=figure.low, high=figure.high)
