"""What a push will put where: decided from the folder alone, without asking the Hub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dami_merge.card import Licence, make_card_files, make_family_card
from dami_merge.files.hashing import file_sha256
from dami_merge.files.progress import Progress
from dami_merge.recipes.recipe import parse_recipe
from dami_router.errors import CheckpointError, FailureError, MisuseError
from dami_router.manifest.family import MANIFEST, Family, Variant
from dami_router.manifest.published import parse_hub_id

__all__ = ["Layout", "PushOptions", "PushPlan", "PushTarget", "UploadSource", "check_ready", "plan_push"]

Layout = Literal["repos", "branches"]


@dataclass(frozen=True)
class PushOptions:
    """Where to publish and how; `jobs` is the number of uploads at a time."""

    namespace: str
    layout: Layout = "repos"
    private: bool = False
    collection: bool = True
    jobs: int = 4


@dataclass(frozen=True)
class UploadSource:
    """A file for the Hub: its path there, its content or where it is, its size and sha256."""

    path: str
    content: bytes | Path
    size: int
    sha256: str

    def read(self) -> bytes:
        """Return the whole content."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


@dataclass(frozen=True, eq=False)
class PushTarget:
    """A branch of a repository and everything on it but the manifest; `variant` is None for the family's own."""

    repo: str
    branch: str
    variant: Variant | None
    files: tuple[UploadSource, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def __str__(self) -> str:
        return self.repo if self.branch == "main" else f"{self.repo}@{self.branch}"


@dataclass(frozen=True)
class PushPlan:
    """A whole push; `collection` is the title of the collection, None for none."""

    family: Family
    root: Path
    options: PushOptions
    targets: tuple[PushTarget, ...]
    collection: str | None

    @property
    def repos(self) -> list[str]:
        """The repositories, each once."""
        return list(dict.fromkeys(target.repo for target in self.targets))

    @property
    def variants(self) -> list[PushTarget]:
        """The targets that hold a variant."""
        return [target for target in self.targets if target.variant is not None]


def check_ready(family: Family, root: Path, progress: Progress = lambda total: nullcontext(lambda _: None)) -> None:  # noqa: ARG005
    """Refuse a family that is not whole: variants of its recipe missing, or files that are not the manifest's.

    `progress` gets the bytes to read. Raises CheckpointError or FailureError.
    """
    recipe = parse_recipe(family.recipe, "recipe")
    wanted = recipe.family.lambdas if recipe.family else tuple(v.lambda_ for v in family.variants)
    missing = sorted(set(wanted) - {variant.lambda_ for variant in family.variants})
    if missing or not family.variants:
        raise FailureError(
            f"{root}: the family is not complete: λ = {', '.join(f'{x:g}' for x in missing)} of its recipe not built",
            hint="`dami build` the rest, or take them out of the recipe's `lambdas`",
        )
    files = [(root / v.folder / name, sha256) for v in family.variants for name, sha256 in v.files.items()]
    for path, _ in files:
        if not path.is_file() or path.is_symlink():
            what = "is a link" if path.is_symlink() else "is not there"
            raise CheckpointError(f"{path}: {what}; the manifest names a file", hint=f"see `dami verify {root}`")
    with progress(sum(path.stat().st_size for path, _ in files)) as advance, ThreadPoolExecutor(_threads()) as pool:
        found = list(pool.map(lambda file: file_sha256(file[0], progress=lambda n: _void(advance(n))), files))
    for (path, said), sha256 in zip(files, found, strict=True):
        if sha256 != said:
            raise CheckpointError(f"{path}: was changed after the build", hint=f"see `dami verify {root}`")


def plan_push(family: Family, root: Path, options: PushOptions, licence: Licence) -> PushPlan:
    """Decide repositories, branches and files, and make the cards. Nothing is written."""
    branches = options.layout == "branches"
    whole = f"{options.namespace}/{family.name}"
    places: dict[str, tuple[str, str | None]] = {
        v.id: (whole, _branch(family, v)) if branches else (f"{options.namespace}/{v.id}", None)
        for v in family.variants
    }
    for repo, _ in places.values():
        _check_name(repo)
    # Whoever reads a card finds no trace of where a family was pushed before.
    described = without_places(family)
    targets = [
        PushTarget(
            places[v.id][0], places[v.id][1] or "main", v,
            (*_weights(v, root), *_made(dict(make_card_files(described, v, root, licence, places)))),
        )
        for v in described.variants
    ]  # fmt: skip
    if branches:
        card = make_family_card(described, licence, places)
        targets.append(PushTarget(whole, "main", None, tuple(_made({"README.md": card}))))
    collection = family.name if options.collection and not branches else None
    return PushPlan(family, root, options, tuple(targets), collection)


def without_places(family: Family) -> Family:
    """Return the family without the repositories of its variants."""
    return family.model_copy(update={"variants": [v.model_copy(update={"hub": None}) for v in family.variants]})


def _weights(variant: Variant, root: Path) -> Iterator[UploadSource]:
    for name, sha256 in variant.files.items():
        path = root / variant.folder / name
        yield UploadSource(name, path, path.stat().st_size, sha256)


def _made(files: dict[str, bytes]) -> Iterator[UploadSource]:
    for name, content in files.items():
        yield UploadSource(name, content, len(content), hashlib.sha256(content).hexdigest())


def _branch(family: Family, variant: Variant) -> str:
    short = variant.id.removeprefix(f"{family.name}-")
    return short if short != "main" else variant.id


def _check_name(repo: str) -> None:
    parse_hub_id(repo)
    if repo.count("/") != 1 or "--" in repo or ".." in repo or repo.endswith((".git", ".ipynb", "-", ".")):
        raise MisuseError(f"{repo}: not a name that the Hub accepts", hint="rename the family in its recipe")
    if len(repo.split("/")[1]) > 96:
        raise MisuseError(f"{repo}: longer than the 96 characters that the Hub accepts")


def _threads() -> int:
    return os.cpu_count() or 1


def _void(_: object) -> None:
    """Forget a value."""


MANIFEST_PATH = MANIFEST
