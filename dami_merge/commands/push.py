"""`dami push`: a family onto the Hugging Face Hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dami_router.cli import command
from dami_router.output import Output, table

if TYPE_CHECKING:
    from dami_merge.card import Licence
    from dami_merge.hub import PushPlan, PushReport
    from dami_router.manifest.family import Family


@command(
    "push",
    examples=(
        "dami push out --namespace my-org --dry-run",
        "dami push out --namespace my-org --license apache-2.0",
        "dami push out --namespace my-org --layout branches --private",
    ),
    help="Publish a built family on the Hugging Face Hub: one repository for each variant, each with a card, and a "
    "collection once all of them are complete; or, with --layout branches, one repository with one branch for each "
    "variant. Needs a token with write access (`hf auth login` or HF_TOKEN). If it is stopped, run the same command "
    "again: it resumes, sends nothing twice, and changes nothing once the family is up to date. Text that you add to a "
    "card outside of dami's markers is kept. HF_ENDPOINT names another server.",
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--namespace", required=True, help="The user or organisation to publish under.")
@click.option(
    "--layout", type=click.Choice(["repos", "branches"]), default="repos", show_default=True,
    help="One repository for each variant, or one repository with one branch for each.",
)  # fmt: skip
@click.option("--private", is_flag=True, help="Make the repositories and the collection private.")
@click.option("--no-collection", is_flag=True, help="Make no collection.")
@click.option("--license", "licence", help="The licence to publish under, where the endpoints' cards do not settle it.")
@click.option("--overwrite-card", is_flag=True, help="Replace cards that someone else wrote, and edits of dami's part.")
@click.option("--publish-paths", is_flag=True, help="Publish the recipe as it is, with the paths of this machine.")
@click.option("--jobs", type=click.IntRange(1, 32), default=4, show_default=True, help="Uploads at a time.")
@click.option(
    "--dry-run", is_flag=True,
    help="Check everything and show what would be published, but change nothing; works without a token too.",
)  # fmt: skip
def push(
    output: Output, folder: Path, namespace: str, layout: Any, private: bool, no_collection: bool,
    licence: str | None, overwrite_card: bool, publish_paths: bool, jobs: int, dry_run: bool,
) -> None:  # fmt: skip
    """Publish a family."""
    from dami_merge.commands.byte_bar import byte_bar
    from dami_merge.commands.stopping import stoppable
    from dami_merge.hub import PushOptions, plan_push, push_family
    from dami_merge.hub.push_plan import check_ready
    from dami_router.manifest.family import load_family

    family = load_family(folder)
    root = folder if folder.is_dir() else folder.parent
    check_ready(family, root, partial(byte_bar, "check"))
    options = PushOptions(
        namespace, layout, private, not no_collection, jobs, licence is not None, overwrite_card, publish_paths
    )  # fmt: skip
    plan = plan_push(family, root, options, _licence(output, family, licence, dry_run))
    _warn(output, plan)
    if dry_run:
        _tell_plan(output, plan, _rehearse(output, plan))
        output.hint(f"the same command without --dry-run; first `dami verify {folder}`")
        return
    with stoppable(output):
        report = push_family(plan, progress=partial(byte_bar, "push"))
    _tell_report(output, root, layout, report)


def _tell_report(output: Output, root: Path, layout: str, report: PushReport) -> None:
    for note in report.notes:
        output.warning(note)
    for place in report.departed:
        output.warning(f"{place} is no longer part of the family; it stays on the Hub unchanged")
    rows = [(f"{v.lambda_:g}", _place(v.repo, v.branch), v.revision[:12], v.state) for v in report.variants]
    text = table(("λ", "repository", "commit", ""), rows)
    done = f"{report.commits} commits, {size_text(report.bytes_sent)} sent" if report.commits else "already up to date"
    collection = f"\ncollection: {report.collection}" if report.collection else ""
    output.result(
        f"{text}{collection}\n{done}",
        {
            "name": report.manifest.name, "manifest": str(root / "dami_family.json"), "layout": layout,
            "collection": report.collection, "commits": report.commits, "bytes_sent": report.bytes_sent,
            "departed": list(report.departed), "notes": list(report.notes),
            "variants": [{"id": v.id, "lambda": v.lambda_, "repo": v.repo, "branch": v.branch,
                          "revision": v.revision, "state": v.state} for v in report.variants],
        },
    )  # fmt: skip
    output.hint(f"dami pull {report.collection or report.variants[0].repo} copy")


def _rehearse(output: Output, plan: PushPlan) -> dict[str, str]:
    """Run the checks of a push; without a token or a network, those that need none.

    Returns what a push would make of each target; nothing where the Hub could not be asked.
    """
    from huggingface_hub import get_token

    from dami_merge.hub.preflight import check_offline, inspect_hub
    from dami_router.manifest.hub_errors import HubUnreachableError
    from dami_router.manifest.published import hub_api

    anonymous = get_token() is None
    if anonymous:
        output.warning("no token for the Hub: its rights and private repositories were not checked")
    try:
        state = inspect_hub(hub_api(), plan, anonymous=anonymous)
    except HubUnreachableError as error:
        check_offline(plan)
        output.warning(f"nothing was compared with the Hub: {error.message}")
        return {}
    for note in state.notes:
        output.warning(note)
    return {str(target): state.fate(target) for target in plan.targets}


def _licence(output: Output, family: Family, given: str | None, dry_run: bool) -> Licence:
    from dami_merge.card import Licence, decide_licence
    from dami_router.errors import FailureError

    try:
        return decide_licence(family.endpoints, given)
    except FailureError as error:
        if not dry_run:
            raise
        output.warning(f"a push would stop here: {error}")
        return Licence("unknown")


def _warn(output: Output, plan: PushPlan) -> None:
    from dami_merge.card import hub_id

    ends = plan.family.endpoints
    local = [end.source for end in (ends.instruct, ends.thinking) if hub_id(end) is None]
    if not local:
        return
    named = "no base model" if len(local) == 2 else "only one base model"
    folders = f"{' and '.join(local)} {'are local folders' if len(local) == 2 else 'is a local folder'}"
    paths = "their paths are published" if plan.options.publish_paths else "only their names are published"
    output.warning(f"the cards name {named}, since {folders}; {paths}")


def _tell_plan(output: Output, plan: PushPlan, fates: dict[str, str]) -> None:
    rows = [
        (str(target), "-" if target.variant is None else f"{target.variant.lambda_:g}", str(len(target.files) + 1),
         f"{target.size / 1e6:.1f}", fates.get(str(target), "not compared"))
        for target in plan.targets
    ]  # fmt: skip
    visible = "private" if plan.options.private else "public"
    total = sum(target.size for target in plan.targets)
    lines = [table(("repository", "λ", "files", "MB", ""), rows)]
    if plan.collection:
        lines.append(f"collection: {plan.options.namespace}/{plan.collection}, {len(plan.variants)} models")
    lines.append(f"would be published, {visible}: {_counted(len(plan.repos))}, {size_text(total)}")
    data = [
        {
            "repo": target.repo, "branch": target.branch, "variant": target.variant.id if target.variant else None,
            "bytes": target.size, "state": fates.get(str(target)),
            "files": [{"path": f.path, "bytes": f.size} for f in target.files] + [{"path": "dami_family.json"}],
        }
        for target in plan.targets
    ]  # fmt: skip
    output.result(
        "\n".join(lines),
        {"dry_run": True, "private": plan.options.private, "collection": plan.collection, "bytes": total,
         "targets": data},
    )  # fmt: skip


def size_text(count: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def _counted(repos: int) -> str:
    return "1 repository" if repos == 1 else f"{repos} repositories"


def _place(repo: str, branch: str) -> str:
    return repo if branch == "main" else f"{repo}@{branch}"
