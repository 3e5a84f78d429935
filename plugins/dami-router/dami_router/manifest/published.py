"""Families on the Hugging Face Hub: finding them, and reading their manifests without the weights.

A family is named by the id of a variant's repository, by the id of a repository with one branch
for each variant (`ORG/name@branch` names one variant), or by the slug of its collection. Needs
the extra `hub`; huggingface_hub is imported when it is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dami_router.errors import CheckpointError, FailureError, MisuseError
from dami_router.manifest.family import MANIFEST, MAX_MANIFEST_BYTES, Family, Variant, load_family, parse_family
from dami_router.manifest.hub_collections import Published, Shelf, newest_complete
from dami_router.manifest.hub_errors import told

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["HubId", "fetch_family", "find_published", "hub_api", "open_family", "parse_hub_id", "read_manifest"]

_ID = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,127}", re.ASCII)
_SLUG = re.compile(r".+-[0-9a-f]{24}", re.ASCII)
_REVISION = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)


@dataclass(frozen=True)
class HubId:
    """A repository or collection that a user named, and a revision where one was given."""

    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


def parse_hub_id(text: str) -> HubId:
    """Read `ORG/name`, `ORG/name@revision`, a collection's slug, or the address of any of them."""
    address = re.fullmatch(r"https?://[^/]+/(?:collections/)?([^?#]+?)(?:/tree/([^/?#]+))?/?", text)
    name, revision = (address[1], address[2]) if address else (text, None)
    name, _, after = name.partition("@")
    revision = after or revision
    if not _ID.fullmatch(name) or ".." in name or (revision and not _REVISION.fullmatch(revision)):
        raise MisuseError(
            f"{text!r:.120}: expected an id on the Hub such as ORG/name, ORG/name@branch or a collection's slug"
        )
    return HubId(name, revision)


def hub_api() -> HfApi:
    """Return huggingface_hub's client, with HF_ENDPOINT and the user's token; raises MisuseError without the extra."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import logging
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise MisuseError("families on the Hub need huggingface_hub", hint="pip install 'dami-router[hub]'") from None
    if os.environ.get("DAMI_DEBUG") != "1":
        logging.set_verbosity(40)  # errors alone: its warnings show signed addresses
    disable_progress_bars()
    return HfApi(library_name="dami")


def fetch_family(text: str) -> Family:
    """Fetch the manifest alone of a family on the Hub, whole as it was pushed.

    Of a collection, the newest complete family. Raises MisuseError for an invalid id,
    FailureError where the Hub has no such family or cannot be reached, CheckpointError where
    the manifest is invalid or no family of the collection is complete.
    """
    place = parse_hub_id(text)
    api = hub_api()
    try:
        repos = _collected(api, place)
        if repos is not None:
            return _in_collection(api, place, repos)[0]
        found = read_manifest(api, place.id, place.revision)
    except Exception as error:
        raise told(error, str(place)) from None
    if found is None:
        raise _no_family(place)
    return found[0]


def find_published(text: str) -> tuple[Family, list[Published]]:
    """Find the variants that `text` names, each with the place of its files, sorted by λ.

    Files are taken only from the repositories that the user named, whatever a manifest says.
    The family holds the named variants alone. Raises as `fetch_family` does.
    """
    place = parse_hub_id(text)
    api = hub_api()
    try:
        repos = _collected(api, place)
        if repos is not None:
            return _in_collection(api, place, repos)
        found = read_manifest(api, place.id, place.revision)
        published = list(_own(api, found[0], place.id, found[1], place.revision)) if found else []
    except Exception as error:
        raise told(error, str(place)) from None
    if found is None or not published:
        raise _no_family(place)
    published.sort(key=lambda p: p.variant.lambda_)
    return found[0].model_copy(update={"variants": [p.variant for p in published]}), published


def read_manifest(api: HfApi, repo: str, revision: str | None = None) -> tuple[Family, str] | None:
    """Return the manifest in a repository and the commit it was read at; None where it has none."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled

    commit = revision
    try:
        try:
            facts = api.get_hf_file_metadata(url=hf_hub_url(repo, MANIFEST, revision=revision, endpoint=api.endpoint))
            commit = facts.commit_hash or revision
            if (facts.size or 0) > MAX_MANIFEST_BYTES:
                raise CheckpointError(f"{repo}: {MANIFEST} is larger than {MAX_MANIFEST_BYTES >> 20} MiB; not read")
        except OfflineModeIsEnabled:
            pass  # what is in the cache was bounded when it came
        path = Path(api.hf_hub_download(repo, MANIFEST, revision=commit))
    except LocalEntryNotFoundError:  # not in the cache, and the Hub could not be asked
        raise
    except EntryNotFoundError:
        return None
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{repo}: {MANIFEST} is larger than {MAX_MANIFEST_BYTES >> 20} MiB; not read")
    return parse_family(path.read_bytes(), f"{repo}: {MANIFEST}"), commit or "main"


def _collected(api: HfApi, place: HubId) -> list[str] | None:
    """Return the models of a collection; None where `place` is a repository."""
    from huggingface_hub.errors import HfHubHTTPError

    if place.revision is not None or not _SLUG.fullmatch(place.id):
        return None
    try:
        collection = api.get_collection(place.id)
    except HfHubHTTPError as error:
        if error.response.status_code != 404:
            raise
        return None
    return [item.item_id for item in collection.items if item.item_type == "model" and _ID.fullmatch(item.item_id)]


def _in_collection(api: HfApi, place: HubId, repos: Sequence[str]) -> tuple[Family, list[Published]]:
    shelves = []
    for repo in repos:
        found = read_manifest(api, repo)
        if found is not None:
            shelves.append(Shelf(repo, found[0], tuple(_own(api, found[0], repo, found[1], None))))
    if not shelves:
        raise _no_family(place)
    return newest_complete(api, str(place), shelves)


def _own(api: HfApi, family: Family, repo: str, commit: str, revision: str | None) -> Iterator[Published]:
    """Yield the variants whose files are in `repo`.

    Those that the manifest places there; in a copy under another owner, the one that the
    repository is named after; in a renamed repository, the one whose weights it holds.
    """
    here = [v for v in family.variants if v.hub is not None and v.hub.repo.lower() == repo.lower()]
    if revision is not None and len(here) > 1:
        here = [v for v in here if v.hub and (revision in (v.id, v.hub.revision) or v.id.endswith(f"-{revision}"))]
    for variant in here:
        assert variant.hub is not None
        yield Published(variant, repo, variant.hub.revision)
    if not here:
        named = [v for v in family.variants if v.id.lower() == repo.split("/")[1].lower()]
        yield from (Published(v, repo, commit) for v in named or _by_weights(api, family, repo, commit))


def _by_weights(api: HfApi, family: Family, repo: str, commit: str) -> list[Variant]:
    from huggingface_hub.hf_api import RepoFile

    entries = api.list_repo_tree(repo, revision=commit)
    held = {entry.lfs.sha256 for entry in entries if isinstance(entry, RepoFile) and entry.lfs is not None}
    return [
        variant
        for variant in family.variants
        if (weights := {sha for name, sha in variant.files.items() if name.endswith(".safetensors")})
        and weights <= held
    ]


def _no_family(place: HubId) -> FailureError:
    return FailureError(
        f"{place}: no {MANIFEST} with a variant of this repository there: not a family that `dami push` made",
        hint="name a variant's repository, a repository with branches, or the family's collection",
    )


def open_family(place: str | Path) -> Family:
    """Read a family's manifest from a file, a folder, or the Hub where no such path exists.

    Raises MisuseError where there is none, FailureError where the Hub cannot give it,
    CheckpointError where it is no manifest or a collection holds no complete family.
    """
    path = Path(place)
    if isinstance(place, Path) or path.exists() or not _looks_like_id(place):
        return load_family(path)
    return fetch_family(place)


def _looks_like_id(text: str) -> bool:
    if text.startswith(("./", "../", "/", "~")):
        return False
    try:
        parse_hub_id(text)
    except MisuseError:
        return False
    return True
