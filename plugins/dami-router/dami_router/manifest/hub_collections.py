"""Choosing the family that a collection on the Hub holds.

A collection may list repositories of several families or builds: one that was pushed again with
other λ, or a push that was cut. The newest complete family is chosen; where none is complete,
the error names what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dami_router.errors import CheckpointError
from dami_router.manifest.family import MANIFEST, Family, Variant

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Published", "Shelf", "newest_complete"]


@dataclass(frozen=True)
class Published:
    """A variant on the Hub: its description, and the commit of the repository that holds its files."""

    variant: Variant
    repo: str
    revision: str


@dataclass(frozen=True)
class Shelf:
    """One repository of a collection: its manifest, and the variants whose files it holds."""

    repo: str
    family: Family
    published: tuple[Published, ...]


def newest_complete(api: HfApi, where: str, shelves: Sequence[Shelf]) -> tuple[Family, list[Published]]:
    """Return the newest family of which every variant is on a shelf, and its variants by λ.

    Raises CheckpointError where no family is complete; it names the missing variants.
    """
    groups: list[list[Shelf]] = []
    for shelf in shelves:
        group = next((g for g in groups if g[0].family.same_build(shelf.family)), None)
        groups.append([shelf]) if group is None else group.append(shelf)
    dates = _dates(api, shelves)
    complaints = []
    for group in sorted(groups, key=lambda g: max(dates[s.repo] for s in g), reverse=True):
        newest = max(group, key=lambda s: dates[s.repo])
        found = {p.variant.id: p for shelf in group for p in shelf.published}
        missing = [v for v in newest.family.variants if v.id not in found]
        if newest.family.variants and not missing:
            published = sorted((found[v.id] for v in newest.family.variants), key=lambda p: p.variant.lambda_)
            return newest.family.model_copy(update={"variants": [p.variant for p in published]}), published
        complaints.append(_complaint(newest.family, group, missing))
    raise CheckpointError(
        f"{where}: lists no complete family: {'; '.join(complaints)}",
        hint="its owner can run `dami push` again; a single variant can be had by its repository's id",
    )


def _dates(api: HfApi, shelves: Sequence[Shelf]) -> dict[str, datetime]:
    """Return when each repository's manifest was committed; not asked for where all manifests are one."""
    from huggingface_hub.hf_api import RepoFile

    long_ago = datetime.min.replace(tzinfo=UTC)
    dates = dict.fromkeys((shelf.repo for shelf in shelves), long_ago)
    if all(shelf.family == shelves[0].family for shelf in shelves):
        return dates
    for repo in dates:
        for entry in api.get_paths_info(repo, [MANIFEST], expand=True):
            if isinstance(entry, RepoFile) and entry.last_commit is not None:
                dates[repo] = entry.last_commit.date
    return dates


def _complaint(family: Family, group: Sequence[Shelf], missing: Sequence[Variant]) -> str:
    if not family.variants:
        return f"{family.name} ({group[0].repo}) has no variants"
    names = ", ".join(v.hub.repo if v.hub else v.id for v in missing)
    here = len(family.variants) - len(missing)
    listed = f"{here} of its {len(family.variants)} variants"
    return f"{family.name} ({group[0].repo}, …) has {listed} here; missing, private or of another build: {names}"
