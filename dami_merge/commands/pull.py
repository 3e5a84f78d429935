"""`dami pull`: a family from the Hugging Face Hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from dami_router.cli import command
from dami_router.output import Output, table


@command(
    "pull",
    examples=(
        "dami pull my-org/Qwen3-4B-2507-DAMI-l060 out",
        "dami pull my-org/Qwen3-4B-2507-DAMI@l060 out",
        "dami pull my-org/qwen3-4b-2507-dami-0123456789abcdef01234567 out",
    ),
    help="Fetch a family from the Hugging Face Hub. ID is a collection (its newest complete family), a variant's "
    "repository, or a repository with branches (all of them, or one as ID@branch). A file gets its name only after "
    "its sha256 matched the manifest; nothing of it is run. If it is stopped, run the same command again to "
    "resume. A folder that holds other variants of the family gets the new ones beside them.",
)
@click.argument("identity", metavar="ID")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--jobs", type=click.IntRange(1, 32), default=4, show_default=True, help="Downloads at a time.")
def pull(output: Output, identity: str, out: Path, jobs: int) -> None:
    """Fetch a family."""
    from dami_merge.commands.byte_bar import byte_bar
    from dami_merge.commands.push import size_text
    from dami_merge.commands.stopping import stoppable
    from dami_merge.hub import pull_family

    with stoppable(output):
        report = pull_family(identity, out, jobs=jobs, progress=partial(byte_bar, "pull"))
    state = dict.fromkeys(report.fetched, "fetched") | dict.fromkeys(report.kept, "here already")
    rows = [(f"{v.lambda_:g}", str(out / v.folder), state.get(v.id, "")) for v in report.manifest.variants]
    output.result(
        f"{table(('λ', 'folder', ''), rows)}\n{size_text(report.bytes_fetched)} fetched",
        {
            "name": report.manifest.name, "out": str(out), "fetched": list(report.fetched), "kept": list(report.kept),
            "bytes_fetched": report.bytes_fetched,
            "variants": [{"id": v.id, "lambda": v.lambda_, "folder": str(out / v.folder)}
                         for v in report.manifest.variants],
        },
    )  # fmt: skip
    output.hint(f"dami verify {out}")
