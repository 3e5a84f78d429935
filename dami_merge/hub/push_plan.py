"""What a push will put where, decided from the folder alone; the Hub is not asked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from dami_merge.card import Licence, make_card_files, make_family_card
from dami_merge.files.hashing import file_sha256
from dami_merge.files.progress import Progress
from dami_merge.hub.local_paths import without_local_paths
from dami_merge.recipes.recipe import parse_recipe
from dami_router.errors import CheckpointError, FailureError, MisuseError
from dami_router.manifest.family import Family, Variant
from dami_router.manifest.published import parse_hub_id

__all__ = [
    "Layout",
    "PushOptions",
    "PushPlan",
    "PushTarget",
    "UploadSource",
    "check_ready",
    "collection_title",
    "plan_push",
    "without_places",
]  # fmt: skip

Layout = Literal["repos", "branches"]
_MAX_FILE, _MAX_LFS_FILE = 500 * 10**9, 50 * 10**9  # bytes
_MAX_NAME = 96
_MAX_TITLE = 60


@dataclass(frozen=True)
class PushOptions:
    """Where to publish and how.

    `jobs` is the number of uploads at a time. `own_licence`: the user named the licence, so it
    replaces one in a card on the Hub. `overwrite_card`: cards that others wrote may be replaced,
    and edits of our part of a card. `publish_paths`: the recipe is published with the paths of this machine.
    """

    namespace: str
    layout: Layout = "repos"
    private: bool = False
    collection: bool = True
    jobs: int = 4
    own_licence: bool = False
    overwrite_card: bool = False
    publish_paths: bool = False


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
    """A whole push.

    `family` is the local one, `published` what the Hub gets of it: without places and without
    paths of this machine. `collection` is the title of the collection, None for none.
    """

    family: Family
    published: Family
    root: Path
    options: PushOptions
    licence: Licence
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
    """Refuse an incomplete family: variants of its recipe are missing, or files are not those of the manifest.

    `progress` gets the number of bytes to read. Raises CheckpointError or FailureError.
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
    """Decide repositories, branches and files, and make the cards. Nothing is written.

    Raises MisuseError for names that the Hub refuses, FailureError for files that are too large
    for it and for local paths in the recipe.
    """
    branches = options.layout == "branches"
    whole = f"{options.namespace}/{family.name}"
    places: dict[str, tuple[str, str | None]] = {
        v.id: (whole, _branch(family, v)) if branches else (f"{options.namespace}/{v.id}", None)
        for v in family.variants
    }
    _check_names([whole] if branches else [repo for repo, _ in places.values()])
    published = without_places(family if options.publish_paths else without_local_paths(family))
    targets = [
        PushTarget(
            places[v.id][0], places[v.id][1] or "main", v,
            (*_weights(v, root), *_made(dict(make_card_files(published, v, root, licence, places)))),
        )
        for v in published.variants
    ]  # fmt: skip
    if branches:
        card = make_family_card(published, licence, places)
        targets.append(PushTarget(whole, "main", None, tuple(_made({"README.md": card}))))
    for target in targets:
        _check_sizes(target)
    collection = collection_title(family.name) if options.collection and not branches else None
    return PushPlan(family, published, root, options, licence, tuple(targets), collection)


def collection_title(name: str) -> str:
    """Return the title of a family's collection: its name, shortened with a hash where it exceeds 60 characters."""
    if len(name) <= _MAX_TITLE:
        return name
    return f"{name[: _MAX_TITLE - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


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


def _check_names(repos: Sequence[str]) -> None:
    """Refuse names that the Hub refuses.

    Rules: huggingface_hub's `validate_repo_id`; `.git` and `.ipynb` endings are the Hub's own;
    names that differ only in case are one repository.
    """
    seen: dict[str, str] = {}
    for repo in repos:
        parse_hub_id(repo)
        name = repo.split("/")[-1]
        if repo.count("/") != 1 or "--" in repo or ".." in repo or name.lower().endswith((".git", ".ipynb", "-", ".")):
            raise MisuseError(f"{repo}: not a name that the Hub accepts", hint="rename the family in its recipe")
        if len(name) > _MAX_NAME:
            raise MisuseError(
                f"{repo}: its name has {len(name)} characters, the Hub accepts {_MAX_NAME}",
                hint="shorten the family's name in its recipe",
            )
        other = seen.setdefault(repo.lower(), repo)
        if other != repo:
            raise MisuseError(f"{other} and {repo} differ only in case, which makes them one repository on the Hub")


def _check_sizes(target: PushTarget) -> None:
    limit, why = _size_limit()
    for file in target.files:
        if file.size > limit:
            raise FailureError(
                f"{target}: {file.path} has {file.size / 1e9:.1f} GB; the Hub takes {limit / 1e9:g} GB per file{why}",
                hint="build again with --max-shard-size 5GB",
            )


def _size_limit() -> tuple[int, str]:
    """Return the largest file in bytes: 500 GB, or 50 GB where files go through the LFS protocol.

    https://huggingface.co/docs/hub/storage-limits; the LFS limit is from `HfApi.upload_file`.
    """
    from huggingface_hub import constants

    xet = find_spec("hf_xet") is not None and not constants.HF_HUB_DISABLE_XET
    return (_MAX_FILE, "") if xet else (_MAX_LFS_FILE, " without hf-xet")


def _threads() -> int:
    return os.cpu_count() or 1


def _void(_: object) -> None:
    """Forget a value."""
