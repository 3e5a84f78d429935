"""The use case `dami push`: a family becomes repositories, and a collection once they are complete.

The manifest in a variant's repository names the commit of that same repository which holds the
variant, which no file in one commit could. So there are two commits: the variant's files
first, with a manifest that names no places yet; when every variant is there, the manifest with
all places. A variant's place is its first commit, and later ones leave its files untouched.

Nothing is remembered here between runs: what to do is found by comparing with the Hub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from dami_merge.files.progress import Progress
from dami_merge.hub.collection import bring_collection
from dami_merge.hub.push_plan import PushPlan, PushTarget, UploadSource, without_places
from dami_merge.hub.remote import Remote, check_ours, commit_of, look, source_of_text
from dami_merge.hub.threads import pool
from dami_merge.hub.upload import bring
from dami_router.errors import DamiError, FailureError
from dami_router.manifest.family import MANIFEST, Family, HubPlace, load_family
from dami_router.manifest.published import hub_api, told
from dami_router.shared.durable import write_atomically

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["PushReport", "Pushed", "push_family"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Pushed:
    """One variant on the Hub; `state` is created, updated or unchanged."""

    id: str
    lambda_: float
    repo: str
    branch: str
    revision: str
    state: str


@dataclass(frozen=True)
class PushReport:
    """What a push did. `commits` counts those made now; `collection` is a slug."""

    manifest: Family
    variants: tuple[Pushed, ...]
    commits: int
    bytes_sent: int
    collection: str | None


def push_family(
    plan: PushPlan,
    *,
    api: HfApi | None = None,
    progress: Progress = lambda total: nullcontext(lambda count: None),  # noqa: ARG005
) -> PushReport:
    """Carry out a plan; run again after a failure, it goes on with what is missing.

    The local manifest gets the variants' places once all are on the Hub. Raises FailureError
    with the Hub's reason, MisuseError for names that it refuses.
    """
    api = api or hub_api()
    return _Push(plan, api).run(progress)


class _Push:
    def __init__(self, plan: PushPlan, api: HfApi) -> None:
        self.plan, self.api = plan, api
        self.commits: list[str] = []
        self.fresh: set[str] = set()
        self.before: dict[PushTarget, Remote] = {}

    def run(self, progress: Progress) -> PushReport:
        self._guarded(self.api.endpoint, self.api.whoami)
        self._prepare()
        pending = source_of_text(MANIFEST, without_places(self.plan.family).text())
        sources = {target: self._sources(target, pending) for target in self.plan.variants}
        total = sum(file.size for target, files in sources.items() for file in self.before[target].missing(files))
        with progress(total) as advance:
            remotes = self._everywhere(self.plan.variants, lambda target: self._send(target, sources[target], advance))
        places = self._everywhere(self.plan.variants, lambda target: self._place(target, remotes[target]))
        manifest = self._manifest(places)
        self._write_manifest(manifest)
        self._everywhere(self.plan.targets, lambda target: self._describe(target, remotes, manifest))
        slug = None
        if self.plan.collection is not None:
            title = self.plan.collection
            slug = self._guarded(f"collection {title}", bring_collection, self.api, self.plan)
        variants = tuple(self._pushed(target, places[target]) for target in self.plan.variants)
        return PushReport(manifest, variants, len(self.commits), total, slug)

    # Repositories and branches

    def _prepare(self) -> None:
        there = {repo: self._guarded(repo, self._exists, repo) for repo in self.plan.repos}
        known = [t for t in self.plan.targets if there[t.repo] and t.branch == "main"]
        # All that exists is looked at before anything is made.
        self.before = self._everywhere(known, self._look)
        for repo, exists in there.items():
            if not exists:
                self._guarded(repo, self._create, repo)
        self._everywhere([t for t in self.plan.targets if t.branch != "main"], self._make_branch)
        rest = [target for target in self.plan.targets if target not in self.before]
        self.before |= self._everywhere(rest, self._look)

    def _exists(self, repo: str) -> bool:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            info = self.api.model_info(repo)
        except RepositoryNotFoundError:
            return False
        if self.plan.options.private and not info.private:
            raise FailureError(
                f"{repo}: is there and public, but --private was asked for",
                hint="make it private in its settings on the Hub, or leave --private out",
            )
        return True

    def _create(self, repo: str) -> None:
        self.api.create_repo(repo, private=self.plan.options.private, exist_ok=True)
        self.fresh.add(repo)

    def _make_branch(self, target: PushTarget) -> None:
        refs = {branch.name for branch in self.api.list_repo_refs(target.repo).branches}
        if target.branch not in refs:
            self.api.create_branch(target.repo, branch=target.branch, exist_ok=True)

    def _look(self, target: PushTarget) -> Remote:
        remote = look(self.api, target.repo, target.branch)
        check_ours(target, remote, self.plan.family)
        return remote

    # Files

    def _sources(self, target: PushTarget, pending: UploadSource) -> list[UploadSource]:
        remote, variant = self.before[target], target.variant
        assert variant is not None
        changes = any(source.path in variant.files for source in remote.missing(target.files))
        # While a variant's files change, the manifest beside them claims nothing about commits.
        return [*target.files, *([pending] if changes or remote.stale(target) else [])]

    def _send(self, target: PushTarget, sources: Sequence[UploadSource], advance: Callable[[int], object]) -> Remote:
        remote, variant = self.before[target], target.variant
        assert variant is not None
        message = f"{variant.id}: λ = {variant.lambda_:g}"
        return self._bring(target, remote, sources, remote.stale(target), message, advance)

    def _place(self, target: PushTarget, remote: Remote) -> str:
        local = next(v for v in self.plan.family.variants if target.variant and v.id == target.variant.id)
        return commit_of(self.api, target, remote.head, self.before[target].manifest, local)

    def _describe(self, target: PushTarget, remotes: dict[PushTarget, Remote], manifest: Family) -> None:
        remote = remotes.get(target) or self.before[target]
        sources = [] if target.variant else list(target.files)
        sources.append(source_of_text(MANIFEST, manifest.text()))
        self._bring(target, remote, sources, (), f"{self.plan.family.name}: manifest with all places", lambda _: None)

    def _bring(
        self, target: PushTarget, remote: Remote, sources: Sequence[UploadSource], stale: Sequence[str], message: str,
        advance: Callable[[int], object],
    ) -> Remote:  # fmt: skip
        targets = len(self.plan.variants)
        threads = max(1, self.plan.options.jobs // min(self.plan.options.jobs, targets))
        now = bring(self.api, target, remote, sources, stale, message, threads=threads, sent=advance)
        if now is not remote:
            self.commits.append(now.head)
        return now

    # The manifest

    def _manifest(self, places: dict[PushTarget, str]) -> Family:
        hubs = {
            target.variant.id: HubPlace(repo=target.repo, revision=revision)
            for target, revision in places.items()
            if target.variant
        }
        family = self.plan.family
        return family.model_copy(
            update={"variants": [v.model_copy(update={"hub": hubs[v.id]}) for v in family.variants]}
        )

    def _write_manifest(self, manifest: Family) -> None:
        if load_family(self.plan.root) != self.plan.family:
            raise FailureError(
                f"{self.plan.root / MANIFEST}: changed while it was pushed",
                hint="push again when nothing else works there",
            )
        if manifest != self.plan.family:
            write_atomically(self.plan.root / MANIFEST, manifest.text().encode())

    def _pushed(self, target: PushTarget, revision: str) -> Pushed:
        assert target.variant is not None
        before = self.before[target]
        new = target.repo in self.fresh or before.manifest is None
        state = "created" if new else "updated" if before.missing(target.files) else "unchanged"
        return Pushed(target.variant.id, target.variant.lambda_, target.repo, target.branch, revision, state)

    # Many at a time, and errors told

    def _everywhere(
        self, targets: Sequence[PushTarget], do: Callable[[PushTarget], Result]
    ) -> dict[PushTarget, Result]:
        with pool(self.plan.options.jobs) as workers:
            jobs = [workers.submit(self._guarded, str(target), do, target) for target in targets]
            return {target: job.result() for target, job in zip(targets, jobs, strict=True)}

    def _guarded(self, where: str, do: Callable[..., Result], *arguments: Any) -> Result:
        try:
            return do(*arguments)
        except DamiError:
            raise
        except Exception as error:
            raise told(error, where) from None
