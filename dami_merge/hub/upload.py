"""Bringing one branch of a repository up to date: large files first, then one commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dami_merge.hub.push_plan import PushTarget, UploadSource
from dami_merge.hub.remote import Remote, look
from dami_router.errors import FailureError
from dami_router.manifest.hub_errors import clean, is_passing

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

__all__ = ["ask_for_room", "bring"]

_LARGE = 1 << 20
_WEIGHTS = ".safetensors"
_BATCH = 256  # objects in one request, as huggingface_hub's own uploads
_WAITS = (1.0, 3.0)  # seconds before a commit is tried again


def bring(
    api: HfApi,
    target: PushTarget,
    remote: Remote,
    sources: Sequence[UploadSource],
    stale: Sequence[str],
    message: str,
    *,
    threads: int = 1,
    sent: Callable[[int], object] = lambda count: None,  # noqa: ARG005
) -> Remote:
    """Commit what the branch lacks of `sources` and delete `stale`; no commit where there is nothing to do.

    Files that the Hub's storage holds from an interrupted push are not sent again. `sent` gets
    the bytes of finished files. Returns the branch after the commit, without its manifest.
    """
    todo = remote.missing(sources)
    if not todo and not stale:
        return remote
    operations = [_addition(source) for source in todo]
    large = [op for op in operations if op.upload_info.size > _LARGE]
    for start in range(0, len(large), threads):
        batch = large[start : start + threads]
        api.preupload_lfs_files(
            target.repo, batch, revision=target.branch, num_threads=threads, free_memory=False
        )  # fmt: skip
        sent(sum(op.upload_info.size for op in batch))
    _commit(api, target, remote, todo, operations, stale, message, threads)
    sent(sum(op.upload_info.size for op in operations if op not in large))
    return look(api, target.repo, target.branch, with_manifest=False)


def ask_for_room(api: HfApi, repo: str, sources: Sequence[UploadSource]) -> None:
    """Ask the Hub where large files would go, which it refuses where the namespace has no storage left.

    Sends no content. Raises what huggingface_hub raises, FailureError for a file that is refused.
    """
    from huggingface_hub.lfs import post_lfs_batch_info

    large = {source.sha256: source for source in sources if source.size > _LARGE or source.path.endswith(_WEIGHTS)}
    infos = [_addition(source).upload_info for source in large.values()]
    for start in range(0, len(infos), _BATCH):
        token = api.token if isinstance(api.token, str) else None
        batch = infos[start : start + _BATCH]
        _, refused, _ = post_lfs_batch_info(batch, token, "model", repo, endpoint=api.endpoint)
        for entry in refused:
            path = large[entry["oid"]].path
            raise FailureError(f"{repo}: {path}: the Hub refuses it: {clean(str(entry['error'].get('message')))}")


def _addition(source: UploadSource) -> CommitOperationAdd:
    from huggingface_hub import CommitOperationAdd

    made = CommitOperationAdd(source.path, source.content)
    # Known from the check before the push, so that gigabytes are not hashed twice; the Hub checks it.
    made.upload_info.sha256 = bytes.fromhex(source.sha256)
    return made


def _commit(
    api: HfApi,
    target: PushTarget,
    remote: Remote,
    todo: Sequence[UploadSource],
    operations: Sequence[CommitOperationAdd],
    stale: Sequence[str],
    message: str,
    threads: int,
) -> None:
    from huggingface_hub import CommitOperationDelete

    waits = iter(_WAITS)
    additions = list(operations)
    while True:
        everything: list[CommitOperationAdd | CommitOperationDelete] = [*additions]
        everything += [CommitOperationDelete(path) for path in stale]
        try:
            api.create_commit(
                target.repo, everything, commit_message=message, revision=target.branch,
                parent_commit=remote.head, num_threads=threads,
            )  # fmt: skip
            return
        except Exception as error:
            wait = next(waits, None)
            if wait is None or not is_passing(error):
                raise
        time.sleep(wait)
        # The answer may have been lost though the commit was made.
        now = look(api, target.repo, target.branch, with_manifest=False)
        if not now.missing(todo) and not set(stale) & set(now.files):
            return
        additions = [_addition(source) for source in todo]
