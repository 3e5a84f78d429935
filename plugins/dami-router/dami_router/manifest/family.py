"""The family manifest `dami_family.json`: the variants of one pair, and where they come from.

`dami build` writes it; the router, `dami verify`, `push` and `pull` read it. It is untrusted input: unknown fields,
file names that leave the folder, NaN and oversized files are refused. Its JSON Schema is docs/family.schema.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from dami_router.errors import CheckpointError, MisuseError

__all__ = [
    "MANIFEST", "MAX_MANIFEST_BYTES", "ChatTemplate", "CreatedWith", "Endpoint", "Endpoints", "Family", "HubPlace",
    "LambdaGroup", "Measured", "PathChoice", "Sampling", "Variant", "json_schema", "load_family", "parse_family",
]  # fmt: skip

MANIFEST = "dami_family.json"
"""The manifest's file name, next to the variants."""

MAX_MANIFEST_BYTES = 16 << 20
"""A larger manifest is refused before it is read."""

# One path component that starts with a letter, a digit or `_`: no separator, no `..`, no hidden file.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}$")]
VariantId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,126}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
RepoId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)


class CreatedWith(_Strict):
    """The tool that built the family."""

    tool: Text
    version: Text


class Endpoint(_Strict):
    """One of the two checkpoints: its name in the recipe, and its files."""

    source: Text = Field(description="Hub id or folder, as in the recipe.")
    commit: Commit | None = Field(default=None, description="The Hub commit that was read; null for a local folder.")
    architecture: Text
    parameters: int = Field(ge=0)
    dtype: Text = Field(description="The dtype of most weights, in safetensors' spelling: BF16.")
    files: dict[FileName, Sha256] = Field(description="sha256 of every file that the variants were built from.")


class Endpoints(_Strict):
    """The pair: λ = 0 and λ = 1."""

    instruct: Endpoint
    thinking: Endpoint


class PathChoice(_Strict):
    """One line of a path's filter list; a null filter matches every tensor."""

    filter: Text | None = None
    value: Text


class LambdaGroup(_Strict):
    """Adjacent layers in which a module has one λ; `first` and `last` are null outside the layers."""

    stack: str = Field(max_length=4096)
    first: int | None = Field(ge=0)
    last: int | None = Field(ge=0)
    module: Text
    lambda_: float = Field(alias="lambda")
    tensors: int = Field(ge=1)


class ChatTemplate(_Strict):
    """Which endpoint's chat template a variant has."""

    source: Literal["instruct", "thinking"]
    sha256: Sha256 | None = Field(description="Hash of the template's text (of its JSON where it has several).")
    opens_think: bool = Field(description="The generation prompt ends inside a `<think>` block.")


class Sampling(_Strict):
    """Sampling defaults, and the endpoint whose generation_config.json they come from."""

    source: Literal["instruct", "thinking"] | None
    values: dict[str, bool | int | float | None]


class HubPlace(_Strict):
    """Where a variant was pushed: a repository on the Hub, and the commit that holds its files."""

    repo: RepoId
    revision: Commit


class Measured(_Strict):
    """Quality and cost on one benchmark: accuracy in [0, 1], mean tokens per answer, n queries."""

    benchmark: Text
    accuracy: Share
    mean_tokens: float = Field(ge=0)
    n: int = Field(ge=1)


class Variant(_Strict):
    """One checkpoint of the family."""

    id: VariantId
    lambda_: float = Field(alias="lambda", description="λ; for a recipe without a family, its mean over parameters.")
    resolved: list[LambdaGroup] = Field(description="λ for each layer and module.")
    folder: VariantId = Field(description="The variant's folder, beside the manifest.")
    files: dict[FileName, Sha256]
    chat_template: ChatTemplate
    sampling: Sampling
    hub: HubPlace | None = None
    measured: list[Measured] = []


class Family(_Strict):
    """All variants of one pair of endpoints."""

    schema_version: Literal[1]
    name: VariantId
    created_with: CreatedWith
    endpoints: Endpoints
    path: Text | list[PathChoice] = Field(description="The family's path; `recipe` where λ is the recipe's own.")
    recipe: str = Field(max_length=1 << 20, description="The merge YAML, verbatim.")
    custom_code: Literal["left out", "carried"] | None = Field(
        default=None,
        description="What became of Python code that Instruct's configs name; absent where they name none.",
    )
    variants: list[Variant] = Field(max_length=101)

    @model_validator(mode="after")
    def _distinct(self) -> Family:
        for what in ("id", "folder", "lambda_"):
            values = [getattr(variant, what) for variant in self.variants]
            if len(set(values)) != len(values):
                raise ValueError(f"two variants have the same {what.rstrip('_')}")
        return self

    def same_build(self, other: Family) -> bool:
        """Whether another manifest is of this build: equal but for the variants and the version that wrote it."""
        mine, theirs = (family.model_dump(exclude={"variants", "created_with"}) for family in (self, other))
        return mine == theirs

    def text(self) -> str:
        """Return the manifest as JSON text; the same content gives the same text."""
        data = self.model_dump(mode="json", by_alias=True)
        if self.custom_code is None:
            del data["custom_code"]  # absent from most manifests, as before it was added
        return json.dumps(data, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def parse_family(text: str | bytes, where: str = MANIFEST) -> Family:
    """Read a manifest from JSON text; raises CheckpointError that names the first invalid field."""
    try:
        data = json.loads(text)
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > 1:
            raise CheckpointError(
                f"{where}: schema_version {version}; this version of dami reads 1", hint="upgrade dami-router"
            )
        return Family.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the top"
        raise CheckpointError(f"{where}: {place[:200]}: {first['msg']}", hint="not a family manifest?") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{where}: not valid JSON", hint="build the family again") from None


def load_family(path: Path) -> Family:
    """Read the manifest at `path`, a file or its folder.

    Raises MisuseError if it does not exist, CheckpointError if it cannot be read or is not a manifest.
    """
    file = path / MANIFEST if path.is_dir() else path
    try:
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise CheckpointError(f"{file}: larger than {MAX_MANIFEST_BYTES >> 20} MiB; expected a family manifest")
        return parse_family(file.read_bytes(), str(file))
    except FileNotFoundError:
        raise MisuseError(
            f"{file}: no such file; expected the folder of a built family", hint="`dami build RECIPE OUT` writes one"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None


def json_schema() -> Mapping[str, Any]:
    """Return the manifest's JSON Schema."""
    return Family.model_json_schema(by_alias=True)
