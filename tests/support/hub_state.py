"""What the Hub's tests share: a recipe, a command's answer, questions about a Hub's state."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hub_server.running import RunningHub

from dami_merge.hub.local_paths import without_local_paths
from dami_router.manifest.family import MANIFEST, Family, load_family, parse_family

RECIPE = """\
merge_method: dami
base_model: {0}/instruct
models:
  - model: {0}/thinking
parameters:
  lambda: 0.5
dtype: bfloat16
family:
  name: fam
  lambdas: [0, 0.5, 1]
  path: {1}
"""


class Answer(NamedTuple):
    """What a command gave."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]
MADE = {"README.md", "lambda.png", "mergekit_config.yml", MANIFEST, ".gitattributes"}


def remote_manifest(hub: RunningHub, repo: str, branch: str = "main") -> Family:
    """Return the manifest at the head of a branch."""
    file = hub.store.repos[repo].resolve(branch).files[MANIFEST]
    return parse_family(hub.store.blobs[file.sha256])


def content(hub: RunningHub, repo: str, revision: str, path: str) -> bytes:
    """Return a file's content, as it is stored."""
    return hub.store.blobs[hub.store.repos[repo].resolve(revision).files[path].sha256]


def nothing_half_published(hub: RunningHub, family: Path) -> bool:
    """Whether each branch holds all of its variant or nothing of it, and a collection complete repositories only."""
    variants = load_family(family).variants
    whole = set()
    for repo in hub.store.repos.values():
        for variant in variants:
            files = repo.resolve("main").files
            if repo.id != f"acme/{variant.id}" or set(files) == {".gitattributes"}:
                continue
            if {name: files[name].sha256 for name in variant.files if name in files} != variant.files:
                return False
            whole.add(repo.id)
    return not hub.store.collections or len(whole) == len(variants)


def published(hub: RunningHub, family: Path) -> bool:
    """Whether everything is on the Hub: files, manifests with places that hold the files, the collection.

    The manifests there are the local one without the paths of this machine.
    """
    local = load_family(family)
    for variant in local.variants:
        assert variant.hub is not None
        repo = hub.store.repos[variant.hub.repo]
        assert repo.id == f"acme/{variant.id}"
        for commit in (repo.resolve("main"), repo.resolve(variant.hub.revision)):
            found = {
                name: hashlib.sha256(hub.store.blobs[file.sha256]).hexdigest() for name, file in commit.files.items()
            }
            assert {name: found[name] for name in variant.files} == variant.files
            assert set(found) == set(variant.files) | MADE
        assert remote_manifest(hub, repo.id) == without_local_paths(local)
    (collection,) = hub.store.collections.values()
    assert [item["id"] for item in collection["items"]] == [f"acme/{v.id}" for v in local.variants]
    return True
