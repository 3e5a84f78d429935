"""The use case `dami push`: a family becomes repositories, and a collection once they are complete.

The manifest in a variant's repository names the commit of that same repository which holds the
variant, which no file in one commit could. So there are two commits: the variant's files
first, with a manifest that names no places; when every variant is there, the manifest with
all places. A variant's place is its first commit, and later ones leave its files as they are.

Nothing is remembered here between runs: what to do is found by comparing with the Hub, and all
that can fail is checked before anything is made (`preflight`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dami_merge.files.progress import Progress
from dami_merge.hub.collection import bring_collection
from dami_merge.hub.preflight import HubState, inspect_hub
from dami_merge.hub.push_plan import PushPlan, PushTarget, UploadSource
from dami_merge.hub.remote import Remote, commit_of, look, source_of_text
from dami_merge.hub.threads import everywhere, guarded
from dami_merge.hub.upload import ask_for_room, bring
from dami_router.errors import FailureError
from dami_router.manifest.family import MANIFEST, Family, HubPlace, load_family
from dami_router.manifest.published import hub_api
from dami_router.shared.durable import write_atomically

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["PushReport", "Pushed", "push_family"]


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
    """What a push did.

    `commits` counts those made now; `collection` is a slug; `departed` are repositories or
    branches that hold earlier variants of the family and stay; `notes` are warnings.
    """

    manifest: Family
    variants: tuple[Pushed, ...]
    commits: int
    bytes_sent: int
    collection: str | None
    departed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def push_family(
    plan: PushPlan,
    *,
    api: HfApi | None = None,
    progress: Progress = lambda total: nullcontext(lambda count: None),  # noqa: ARG005
) -> PushReport:
    """Carry out a plan; after a failure, run it again and it goes on with what is missing.

    The local manifest gets the variants' places once all are on the Hub. Raises FailureError
    with the Hub's reason, MisuseError for names and licences that it refuses.
    """
    api = api or hub_api()
    return _Push(plan, api, inspect_hub(api, plan)).run(progress)


class _Push:
    def __init__(self, plan: PushPlan, api: HfApi, state: HubState) -> None:
        self.plan, self.api, self.state = plan, api, state
        self.jobs = plan.options.jobs
        self.commits: list[str] = []
        self.before: dict[PushTarget, Remote] = dict(state.remotes)

    def run(self, progress: Progress) -> PushReport:
        self._prepare()
        pending = source_of_text(MANIFEST, self.plan.published.text())
        sources = {target: self._sources(target, pending) for target in self.plan.variants}
        total = sum(file.size for target, files in sources.items() for file in self.before[target].missing(files))
        with progress(total) as advance:
            remotes = everywhere(
                self.jobs, self.plan.variants, lambda target: self._send(target, sources[target], advance)
            )
        places = everywhere(self.jobs, self.plan.variants, lambda target: self._place(target, remotes[target]))
        published = _with_places(self.plan.published, places)
        manifest = _with_places(self.plan.family, places)
        self._write_manifest(manifest)
        everywhere(self.jobs, self.plan.targets, lambda target: self._describe(target, remotes, published))
        slug, unlisted = self._bring_collection()
        variants = tuple(self._pushed(target, places[target]) for target in self.plan.variants)
        departed = tuple(sorted({*self._departed(), *unlisted}))
        return PushReport(manifest, variants, len(self.commits), total, slug, departed, self.state.notes)

    # Repositories and branches

    def _prepare(self) -> None:
        """Create what is missing; after the first repository, ask whether there is storage for everything."""
        fresh = [repo for repo in self.plan.repos if repo not in self.state.private]
        if fresh:
            guarded(fresh[0], self._create, fresh[0])
        private = dict.fromkeys(fresh, self.plan.options.private) | dict(self.state.private)
        for visibility in (True, False):
            # Public and private storage have limits of their own; one repository is asked for all that is missing.
            repos = [repo for repo in [*fresh, *self.state.private] if private[repo] is visibility]
            if repos:
                guarded(repos[0], ask_for_room, self.api, repos[0], self._all_missing(repos))
        for repo in fresh[1:]:
            guarded(repo, self._create, repo)
        rest = [target for target in self.plan.targets if target not in self.before]
        everywhere(self.jobs, [target for target in rest if target.branch != "main"], self._make_branch)
        self.before |= everywhere(self.jobs, rest, lambda target: look(self.api, target.repo, target.branch))

    def _all_missing(self, repos: Sequence[str]) -> list[UploadSource]:
        """Return the files that repositories lack."""
        return [
            file
            for target, files in self.state.files.items()
            if target.repo in repos
            for file in (self.before[target].missing(files) if target in self.before else files)
        ]

    def _create(self, repo: str) -> None:
        self.api.create_repo(repo, private=self.plan.options.private, exist_ok=True)

    def _make_branch(self, target: PushTarget) -> None:
        self.api.create_branch(target.repo, branch=target.branch, exist_ok=True)

    # Files

    def _sources(self, target: PushTarget, pending: UploadSource) -> list[UploadSource]:
        remote, variant = self.before[target], target.variant
        assert variant is not None
        files = self.state.files[target]
        changes = any(source.path in variant.files for source in remote.missing(files))
        # While a variant's files change, the manifest beside them claims nothing about commits.
        return [*files, *([pending] if changes or remote.stale(target) else [])]

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
        sources = [] if target.variant else list(self.state.files[target])
        sources.append(source_of_text(MANIFEST, manifest.text()))
        self._bring(target, remote, sources, (), f"{self.plan.family.name}: manifest with all places", lambda _: None)

    def _bring(
        self, target: PushTarget, remote: Remote, sources: Sequence[UploadSource], stale: Sequence[str], message: str,
        advance: Callable[[int], object],
    ) -> Remote:  # fmt: skip
        threads = max(1, self.jobs // min(self.jobs, len(self.plan.variants)))
        now = bring(self.api, target, remote, sources, stale, message, threads=threads, sent=advance)
        if now is not remote:
            self.commits.append(now.head)
        return now

    # The collection, the manifest, what is left behind

    def _bring_collection(self) -> tuple[str | None, list[str]]:
        if self.plan.collection is None:
            return None, []
        private = self.plan.options.private or self.state.lists_private
        where = f"collection {self.plan.collection}"
        return guarded(where, bring_collection, self.api, self.plan, self.state.collection, private)

    def _write_manifest(self, manifest: Family) -> None:
        if load_family(self.plan.root) != self.plan.family:
            raise FailureError(
                f"{self.plan.root / MANIFEST}: changed while it was pushed",
                hint="push again when nothing else works there",
            )
        if manifest != self.plan.family:
            write_atomically(self.plan.root / MANIFEST, manifest.text().encode())

    def _departed(self) -> set[str]:
        """Return the places of earlier variants, as earlier manifests name them."""
        earlier = [self.plan.family, *(remote.manifest for remote in self.before.values() if remote.manifest)]
        variants = {target.variant.id for target in self.plan.variants if target.variant}
        here = f"{self.plan.options.namespace}/"
        places = set()
        for variant in (variant for family in earlier for variant in family.variants):
            if variant.hub is None or not variant.hub.repo.startswith(here):
                continue
            if variant.hub.repo not in self.plan.repos:
                places.add(variant.hub.repo)
            elif variant.id not in variants:
                places.add(f"{variant.hub.repo}@{variant.id.removeprefix(f'{self.plan.family.name}-')}")
        return places

    def _pushed(self, target: PushTarget, revision: str) -> Pushed:
        assert target.variant is not None
        before = self.before[target]
        new = target not in self.state.remotes or before.manifest is None
        state = "created" if new else "updated" if before.missing(self.state.files[target]) else "unchanged"
        return Pushed(target.variant.id, target.variant.lambda_, target.repo, target.branch, revision, state)


def _with_places(family: Family, places: dict[PushTarget, str]) -> Family:
    hubs = {
        target.variant.id: HubPlace(repo=target.repo, revision=revision)
        for target, revision in places.items()
        if target.variant
    }
    return family.model_copy(update={"variants": [v.model_copy(update={"hub": hubs[v.id]}) for v in family.variants]})
