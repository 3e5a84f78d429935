"""`dami demo`: everything end to end on the tiny pair."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from dami_router.cli import command
from dami_router.errors import MisuseError
from dami_router.output import Output


@command(
    "demo",
    examples=("dami demo", "dami demo --serve", "dami demo --out /tmp/demo --queries 1000", "dami demo --json"),
    help="Check a recipe, merge a family of the tiny pair through mergekit, answer held-out queries on every "
    "variant, estimate λ(q) from Instruct's own confidence, route, answer at exactly λ(q) on the live engine, and "
    "report. Under two minutes on two cores; every figure is computed in the run. Writes the variants, a router.yml "
    "and an HTML report into a folder. With --serve, continue with `dami live` on the tiny pair, and the page at /ui.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("dami-demo"), show_default=True, help="Where it all goes."
)
@click.option("--queries", type=click.IntRange(10, 1000), default=400, show_default=True, help="Held-out queries.")
@click.option("--mean-lambda", type=float, default=0.36, show_default=True, help="The mean λ(q) to aim for.")
@click.option("--max-lambda", type=float, default=0.6, show_default=True, help="The largest λ(q).")
@click.option("--serve", is_flag=True, help="Then serve the pair with `dami live`, at 127.0.0.1:8010.")
def demo(output: Output, out: Path, queries: int, mean_lambda: float, max_lambda: float, serve: bool) -> None:
    """Run the demo and write its report."""
    from dami_merge.demo.demo_report import as_dict, as_text, page_address, write_report
    from dami_merge.demo.running import run_demo
    from dami_merge.demo.served_router import ROUTER_FILE

    if not 0 < mean_lambda < max_lambda <= 1:
        raise MisuseError(f"expected 0 < --mean-lambda < --max-lambda ≤ 1, found {mean_lambda:g} and {max_lambda:g}")
    if serve and output.as_json:
        raise MisuseError("--serve and --json do not go together", hint="run `dami demo --json`, then `dami live`")
    marker = out / ".dami-demo"
    if out.exists() and not marker.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MisuseError(f"{out}: holds something else; nothing was written", hint="give another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    marker.touch()
    result = run_demo(out, queries=queries, mean_lambda=mean_lambda, max_lambda=max_lambda, say=output.note)
    report = write_report(result, out)
    output.result(as_text(result), {**as_dict(result), "report": [str(path) for path in report]})
    arguments = [str(out / "lab" / "instruct"), str(out / "lab" / "thinking"), "--name", "lab"]
    arguments += ["--router", str(out / ROUTER_FILE), "--report", str(out)]
    output.hint(f"open {out / 'report.html'}   or   dami explain {out / 'recipe.yml'}")
    before = "" if serve else f"{shlex.join(['dami', 'live', *arguments])}   and "
    output.hint(f"{before}open {page_address(result)}")
    if serve:
        from dami_merge.commands.live import live

        live.main(arguments, standalone_mode=False)
