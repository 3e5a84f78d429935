"""Everything about a push that can fail, found out before the first byte is sent.

`--dry-run` runs the same checks. They only read, so nothing changes on the Hub.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dami_merge.card.card_merge import BEGIN, END, ForeignCardError, merge_card
from dami_merge.card.card_metadata import eval_results_problems, licence_problem, metadata_problems, split_card
from dami_merge.card.card_scores import EVAL_FILE
from dami_merge.card.endpoint_ids import base_models
from dami_merge.hub.collection import find_collection
from dami_merge.hub.push_plan import PushPlan, PushTarget, UploadSource
from dami_merge.hub.remote import CARD, Remote, check_ours, look, read_card, source_of_text
from dami_merge.hub.threads import everywhere, guarded
from dami_merge.hub.token_rights import check_token
from dami_router.errors import FailureError, MisuseError

if TYPE_CHECKING:
    from huggingface_hub import Collection, HfApi

__all__ = ["HubState", "check_offline", "inspect_hub"]


@dataclass(frozen=True)
class HubState:
    """What the Hub has before a push.

    `private` holds the repositories that exist and whether each is private; `remotes` the
    branches that exist; `files` what each branch shall hold, with its card merged; `notes` are
    warnings for the user.
    """

    private: Mapping[str, bool]
    remotes: Mapping[PushTarget, Remote]
    files: Mapping[PushTarget, tuple[UploadSource, ...]]
    collection: Collection | None
    notes: tuple[str, ...]

    def fate(self, target: PushTarget) -> str:
        """Return what a push would make of a branch: new, changed or unchanged."""
        remote = self.remotes.get(target)
        if remote is None:
            return "new"
        return "changed" if remote.missing(self.files[target]) or remote.stale(target) else "unchanged"

    @property
    def lists_private(self) -> bool:
        """Whether a repository of the family is private already."""
        return any(self.private.values())


def check_offline(plan: PushPlan) -> None:
    """Check what can be checked without the Hub: metadata, scores and the licence."""
    _unless(_check_metadata(plan))


def inspect_hub(api: HfApi, plan: PushPlan, *, anonymous: bool = False) -> HubState:
    """Look at everything on the Hub that the plan touches, and refuse what could not end well.

    `anonymous` skips the checks that need a token. Raises FailureError or MisuseError.
    """
    notes = [] if anonymous else check_token(guarded(api.endpoint, api.whoami), plan)
    licence = _check_metadata(plan)
    private = _repositories(api, plan)
    existing = _existing(api, plan, private)
    jobs = plan.options.jobs
    remotes = everywhere(jobs, existing, lambda target: look(api, target.repo, target.branch))
    for target, remote in remotes.items():
        check_ours(target, remote, plan.family)
    cards = everywhere(jobs, existing, lambda target: _with_card(api, plan, target, remotes))
    files = {target: target.files for target in plan.targets} | {t: files for t, (files, _) in cards.items()}
    notes += [f"{target}: {note}" for target, (_, said) in cards.items() for note in said]
    guarded("the card's metadata", _ask_about_metadata, files, licence)
    collection = None
    if plan.collection is not None:
        is_private = plan.options.private or any(private.values())
        where = f"collection {plan.collection}"
        collection = guarded(where, find_collection, api, plan, is_private)
    return HubState(private, remotes, files, collection, tuple(dict.fromkeys(notes)))


def _check_metadata(plan: PushPlan) -> str | None:
    """Check the metadata of our own cards and scores; return what speaks against the licence, if anything.

    A licence that our list lacks may be a new one: the Hub decides. Raises FailureError for
    anything else that the Hub would refuse.
    """
    for target in plan.targets:
        for file in target.files:
            if file.path == CARD:
                problems = metadata_problems(split_card(file.read().decode())[0] or "")
            elif file.path == EVAL_FILE:
                problems = eval_results_problems(file.read().decode())
            else:
                continue
            if problems:
                raise FailureError(f"{target}: {file.path}: the Hub would refuse it: {problems[0]}")
    return licence_problem(plan.licence.id)


def _repositories(api: HfApi, plan: PushPlan) -> dict[str, bool]:
    from huggingface_hub.errors import RepositoryNotFoundError

    def visibility(repo: str) -> bool | None:
        try:
            info = api.model_info(repo)
        except RepositoryNotFoundError:
            return None
        _check_identity(repo, info.id)
        if plan.options.private and not info.private:
            raise FailureError(
                f"{repo}: is already public, but --private was given",
                hint="make it private in its settings on the Hub, or leave --private out",
            )
        return bool(info.private)

    found = everywhere(plan.options.jobs, plan.repos, visibility)
    return {repo: private for repo, private in found.items() if private is not None}


def _check_identity(repo: str, there: str) -> None:
    """Refuse a name that the Hub leads to another repository."""
    if there == repo:
        return
    if there.lower() == repo.lower():
        raise FailureError(
            f"{repo}: the Hub has it as {there}; names that differ only in case are one repository",
            hint="spell the family's name as on the Hub, or choose another",
        )
    raise FailureError(
        f"{repo}: was renamed to {there} on the Hub",
        hint="rename it back there, or give the family another name in its recipe",
    )


def _existing(api: HfApi, plan: PushPlan, there: Mapping[str, bool]) -> list[PushTarget]:
    """Return the targets whose branch exists."""
    several = sorted({t.repo for t in plan.targets if t.branch != "main"} & set(there))
    refs = everywhere(plan.options.jobs, several, api.list_repo_refs)
    branches = {repo: {branch.name for branch in found.branches} for repo, found in refs.items()}
    return [t for t in plan.targets if t.repo in there and (t.branch == "main" or t.branch in branches[t.repo])]


def _with_card(
    api: HfApi, plan: PushPlan, target: PushTarget, remotes: Mapping[PushTarget, Remote]
) -> tuple[tuple[UploadSource, ...], tuple[str, ...]]:
    """Return the target's files with the card merged into the one on the Hub, and notes about it."""
    remote = remotes[target]
    ours = next(file for file in target.files if file.path == CARD)
    if remote.has(ours) or _inherited(target, remotes):
        return target.files, ()
    theirs = read_card(api, target.repo, remote)
    if theirs is None:
        return target.files, ()
    try:
        merged = merge_card(
            theirs,
            ours.read().decode(),
            both_bases=len(base_models(plan.published.endpoints)) == 2,
            own_licence=plan.options.own_licence,
            overwrite=plan.options.overwrite_card,
        )
    except ForeignCardError as error:
        raise FailureError(
            f"{target}: {CARD}: {error}; refusing to overwrite it",
            hint=f"move your text outside the lines {BEGIN} and {END}, with nothing between them; or replace it: "
            "--overwrite-card",
        ) from None
    card = source_of_text(CARD, merged.text)
    notes = tuple(f"{CARD}: {note}" for note in merged.notes)
    return tuple(card if file is ours else file for file in target.files), notes


def _inherited(target: PushTarget, remotes: Mapping[PushTarget, Remote]) -> bool:
    """Whether the card is the main branch's, from which the branch was made: no text about the variant."""
    main = next(
        (r for t, r in remotes.items() if t.repo == target.repo and t.branch == "main" and t is not target), None
    )
    mine = remotes[target].files.get(CARD)
    return main is not None and mine is not None and CARD in main.files and main.files[CARD].blob_id == mine.blob_id


def _ask_about_metadata(files: Mapping[PushTarget, tuple[UploadSource, ...]], licence: str | None) -> None:
    """Let the Hub check the metadata of every card, each text once."""
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import HfHubHTTPError

    cards = [(target, file) for target, found in files.items() for file in found if file.path == CARD]
    fronts = {split_card(file.read().decode())[0] or "": target for target, file in cards}
    for front, target in fronts.items():
        try:
            ModelCard(f"---\n{front}\n---\n", ignore_metadata_errors=True).validate()
        except HfHubHTTPError as error:
            if error.response.status_code not in (404, 405):
                raise
            return _unless(licence)  # a server at HF_ENDPOINT without this route
        except ValueError as error:
            _unless(licence)
            raise FailureError(f"{target}: {CARD}: the Hub refuses its metadata: {_said(str(error))}") from None


def _unless(licence_problem: str | None) -> None:
    if licence_problem is not None:
        raise MisuseError(
            licence_problem, hint="see https://huggingface.co/docs/hub/repositories-licenses; --license sets it"
        ) from None


def _said(answer: str) -> str:
    try:
        data = json.loads(answer)
        return "; ".join(str(error["message"]) for error in data["errors"])
    except (ValueError, KeyError, TypeError):
        return " ".join(answer.split())[:500]
