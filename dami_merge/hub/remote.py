"""What the Hub has on a branch, compared with what is here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dami_merge.hub.push_plan import PushTarget, UploadSource
from dami_router.errors import FailureError
from dami_router.manifest.family import MANIFEST, Family, Variant
from dami_router.manifest.published import read_manifest

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

__all__ = ["CARD", "Remote", "check_ours", "commit_of", "look", "read_card", "source_of_text"]

CARD = "README.md"
"""The card's file name."""

_BORN_WITH = {".gitattributes", CARD, "LICENSE"}
_MAX_CARD = 4 << 20  # bytes
_WEIGHTS = re.compile(r"model(?:-\d+-of-\d+)?\.safetensors")


@dataclass(frozen=True)
class Remote:
    """The files of a branch at its head commit, and the manifest among them."""

    head: str
    files: Mapping[str, RepoFile]
    manifest: Family | None

    def has(self, source: UploadSource) -> bool:
        """Whether the branch holds exactly this content at this path."""
        found = self.files.get(source.path)
        if found is None or found.size != source.size:
            return False
        if found.lfs is not None:
            return bool(found.lfs.sha256 == source.sha256)
        content = source.read()
        return bool(found.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())  # noqa: S324

    def missing(self, sources: Iterable[UploadSource]) -> list[UploadSource]:
        """Return what the branch lacks or has otherwise."""
        return [source for source in sources if not self.has(source)]

    def stale(self, target: PushTarget) -> list[str]:
        """Return the paths of weights and other files of ours that the variant no longer has."""
        before = {v.id: v for v in self.manifest.variants} if self.manifest else {}
        old = before.get(target.variant.id) if target.variant else None
        ours = set(old.files) if old else set()
        mine = {file.path for file in target.files}
        weights = {path for path in self.files if _WEIGHTS.fullmatch(path)}
        gone = (ours | weights | {"model.safetensors.index.json", ".eval_results/dami.yaml"}) & set(self.files)
        return sorted(gone - mine) if target.variant else []


def look(api: HfApi, repo: str, revision: str, *, with_manifest: bool = True) -> Remote:
    """Ask for the files at a branch or commit."""
    from huggingface_hub.hf_api import RepoFile

    head = api.model_info(repo, revision=revision).sha
    assert head is not None
    entries = api.list_repo_tree(repo, revision=head, recursive=True)
    files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    read = read_manifest(api, repo, head) if with_manifest and MANIFEST in files else None
    return Remote(head, files, read[0] if read else None)


def check_ours(target: PushTarget, remote: Remote, family: Family) -> None:
    """Refuse a repository that holds something other than this family."""
    there = remote.manifest
    if there is None and set(remote.files) <= _BORN_WITH:
        return
    if there is not None and there.name == family.name and _shapes(there) == _shapes(family):
        return
    if there is None:
        what = "files that `dami push` did not put there"
    elif there.name != family.name:
        what = f"the family {there.name}"
    else:
        what = f"another family of this name, of {there.endpoints.instruct.source}"
    raise FailureError(
        f"{target}: already holds {what}; refusing to overwrite it",
        hint="give the family another name in its recipe, another --namespace, or move the repository away",
    )


def read_card(api: HfApi, repo: str, remote: Remote) -> str | None:
    """Return the card on a branch; None where it has none."""
    found = remote.files.get(CARD)
    if found is None:
        return None
    if found.size > _MAX_CARD:
        raise FailureError(f"{repo}: its {CARD} has {found.size} bytes, more than {_MAX_CARD >> 20} MiB")
    content = Path(api.hf_hub_download(repo, CARD, revision=remote.head)).read_bytes()
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise FailureError(
            f"{repo}: its {CARD} is not UTF-8; refusing to overwrite it", hint="--overwrite-card replaces it"
        ) from None


def _shapes(family: Family) -> list[tuple[str, int]]:
    """Return what no rebuild of a family changes: the architecture and size of its endpoints."""
    ends = family.endpoints
    return [(end.architecture, end.parameters) for end in (ends.instruct, ends.thinking)]


def commit_of(api: HfApi, target: PushTarget, head: str, before: Family | None, local: Variant) -> str:
    """Return a commit that holds the variant's files: one that a manifest names already, else the head.

    `before` is the manifest that was on the Hub. A second push thus finds the same commits,
    though every repository has later ones.
    """
    assert target.variant is not None
    weights = [file for file in target.files if file.path in target.variant.files]
    published = next((v for v in before.variants if v.id == local.id), None) if before else None
    for claim in (published, local):
        hub = claim.hub if claim else None
        if hub and hub.repo == target.repo and hub.revision != head and _holds(api, target, hub.revision, weights):
            return hub.revision
    return head


def source_of_text(path: str, text: str) -> UploadSource:
    """Return a file made here from its text."""
    content = text.encode()
    return UploadSource(path, content, len(content), hashlib.sha256(content).hexdigest())


def _holds(api: HfApi, target: PushTarget, revision: str, weights: list[UploadSource]) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return not look(api, target.repo, revision, with_manifest=False).missing(weights)
    except HfHubHTTPError as error:
        if error.response.status_code != 404:
            raise
        return False  # the repository was made anew since
