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
    from dami_merge.hub import PushPlan
    from dami_router.manifest.family import Family


@command(
    "push",
    examples=(
        "dami push out --namespace my-org --dry-run",
        "dami push out --namespace my-org --license apache-2.0",
        "dami push out --namespace my-org --layout branches --private",
    ),
    help="Publish a built family on the Hugging Face Hub: one repository a variant, each with a card, and a collection "
    "once all of them are complete; or, with --layout branches, one repository with a branch a variant. Needs "
    "a token with write access (`hf auth login` or HF_TOKEN). Stopped at any moment, the same command goes on: what is "
    "there is not sent again, and a family that is up to date changes nothing. HF_ENDPOINT points to another server.",
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--namespace", required=True, help="The user or organisation to publish under.")
@click.option(
    "--layout", type=click.Choice(["repos", "branches"]), default="repos", show_default=True,
    help="A repository a variant, or one with a branch a variant.",
)  # fmt: skip
@click.option("--private", is_flag=True, help="Make the repositories and the collection private.")
@click.option("--no-collection", is_flag=True, help="Make no collection.")
@click.option("--license", "licence", help="The licence to publish under, where the endpoints' cards do not settle it.")
@click.option("--jobs", type=click.IntRange(1, 32), default=4, show_default=True, help="Uploads at a time.")
@click.option("--dry-run", is_flag=True, help="Say what would be published, and change nothing; needs no token.")
def push(
    output: Output, folder: Path, namespace: str, layout: Any, private: bool, no_collection: bool,
    licence: str | None, jobs: int, dry_run: bool,
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
    options = PushOptions(namespace, layout, private, not no_collection, jobs)
    plan = plan_push(family, root, options, _licence(output, family, licence, dry_run))
    _warn(output, family)
    if dry_run:
        _tell_plan(output, plan)
        output.hint(f"the same command without --dry-run; first `dami verify {folder}`")
        return
    with stoppable(output):
        report = push_family(plan, progress=partial(byte_bar, "push"))
    rows = [(f"{v.lambda_:g}", _place(v.repo, v.branch), v.revision[:12], v.state) for v in report.variants]
    text = table(("λ", "repository", "commit", ""), rows)
    done = (
        f"{report.commits} commits, {size_text(report.bytes_sent)} sent" if report.commits else "everything was there"
    )
    collection = f"\ncollection: {report.collection}" if report.collection else ""
    output.result(
        f"{text}{collection}\n{done}",
        {
            "name": report.manifest.name, "manifest": str(root / "dami_family.json"), "layout": layout,
            "collection": report.collection, "commits": report.commits, "bytes_sent": report.bytes_sent,
            "variants": [{"id": v.id, "lambda": v.lambda_, "repo": v.repo, "branch": v.branch,
                          "revision": v.revision, "state": v.state} for v in report.variants],
        },
    )  # fmt: skip
    output.hint(f"dami pull {report.collection or report.variants[0].repo} copy")


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


def _warn(output: Output, family: Family) -> None:
    from dami_merge.card import hub_id

    local = [e.source for e in (family.endpoints.instruct, family.endpoints.thinking) if hub_id(e) is None]
    if local:
        output.warning(
            f"the cards name no base model, since {' and '.join(local)} are local folders; the recipe is published "
            "with these paths as they stand"
        )


def _tell_plan(output: Output, plan: PushPlan) -> None:
    rows = [
        (str(target), "-" if target.variant is None else f"{target.variant.lambda_:g}", str(len(target.files) + 1),
         f"{target.size / 1e6:.1f}")
        for target in plan.targets
    ]  # fmt: skip
    visible = "private" if plan.options.private else "public"
    total = sum(target.size for target in plan.targets)
    lines = [table(("repository", "λ", "files", "MB"), rows)]
    if plan.collection:
        lines.append(f"collection: {plan.options.namespace}/{plan.collection}, {len(plan.variants)} models")
    lines.append(f"would be published, {visible}: {_counted(len(plan.repos))}, {size_text(total)}")
    data = [
        {
            "repo": target.repo, "branch": target.branch, "variant": target.variant.id if target.variant else None,
            "bytes": target.size,
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
