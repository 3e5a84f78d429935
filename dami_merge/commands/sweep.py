"""`dami sweep`: from two checkpoints to the λ worth having."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dami_router.cli import command
from dami_router.commands.shared_options import asking_options, dataset_options, numbers, whole_numbers
from dami_router.errors import FailureError, MisuseError
from dami_router.output import Output
from dami_router.shared.suggestions import amount

if TYPE_CHECKING:
    from dami_merge.sweep.sweep_plan import SweepPlan
    from dami_merge.sweep.sweep_results import SweepFiles
    from dami_merge.sweep.sweeping import Sweep
    from dami_router.collecting.settings import QuestionSettings
    from dami_router.datasets import Dataset, Question
    from dami_router.grading import Grader
    from dami_router.router import Router

__all__ = ["sweep"]

_DAY = 86_400


@command(
    "sweep",
    examples=(
        "dami sweep lab/instruct lab/thinking --dataset questions.jsonl --out sweep --max-tokens 160 --dtype float32",
        "dami sweep Qwen/Qwen3-4B-Instruct-2507 Qwen/Qwen3-4B-Thinking-2507 --dataset openai/gsm8k --config main "
        "--split test --limit 400 --max-tokens 16384 --device cuda --precision 3 --out sweep",
        "dami sweep INSTRUCT THINKING --url http://127.0.0.1:8010 --dataset q.jsonl --caps 512,2048 --out sweep",
    ),
    help="Find the λ worth having before anything is built: ask the questions of a dataset at a grid of λ through "
    "`dami live`, make the grid finer where the frontier bends, drop the λ that are clearly dominated, and go on until "
    "the intervals are narrow enough. Thinking with a cap on its thinking tokens is asked too. Writes rollouts, a "
    "report, and a recipe whose family has the λ on the frontier. If it is interrupted, run the same command "
    "again to resume.",
)
@click.argument("instruct")
@click.argument("thinking")
@click.option("--dataset", required=True, help="A JSONL, CSV or parquet file, or a dataset's id on the Hub.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The folder to write; resumed if it exists."
)
@dataset_options
@click.option("--answer-column", help="Column of the expected answers. Default: found by its usual names.")
@click.option(
    "--grade", type=click.Choice(["exact", "numeric", "choice", "math-verify"]),
    help="How answers are compared. Default: as in `dami rollout`.",
)  # fmt: skip
@asking_options
@click.option("--seed", type=click.IntRange(0, 2**31), help="Sent with each request.")
@click.option("--lambdas", default="0,0.25,0.5,0.75,1", show_default=True, help="The first grid of λ.")
@click.option("--most", type=click.IntRange(2, 101), default=9, show_default=True, help="Most λ in all.")
@click.option(
    "--caps", help="Limits of Thinking's thinking tokens, such as 512,2048; `none`. Default: from its answers."
)
@click.option(
    "--precision", type=click.FloatRange(min=0), default=0.0, metavar="POINTS",
    help="Stop when the accuracies on the frontier are known to ± this many points (95 %).",
)  # fmt: skip
@click.option("--max-tokens-total", type=click.IntRange(min=1), help="Stop before more tokens than this are generated.")
@click.option("--url", help="A running live server of this pair, instead of starting `dami live`.")
@click.option("--device", default="cpu", show_default=True, help="For `dami live`: cpu, cuda or cuda:1.")
@click.option("--dtype", help="For `dami live` and the recipe.  [default: the files' own]")
@click.option("--path", "along", default="uniform", show_default=True, help="How λ spreads over layers.")
@click.option("--chat-template", default="instruct", show_default=True, help="instruct, thinking or from(λ).")
@click.option("--max-length", type=click.IntRange(min=2), help="For `dami live`: most tokens of prompt and answer.")
@click.option("--name", help="The family's name in the recipe. Default: from the pair.")
@click.option("--benchmark", help="The benchmark's name. Default: the dataset's.")
@click.option("--concurrency", type=click.IntRange(1, 4096), default=32, show_default=True, help="Requests in flight.")
@click.option(
    "--patience", type=click.FloatRange(min=0), default=60.0, show_default=True,
    help="Seconds during which a failing request is retried.",
)  # fmt: skip
def sweep(output: Output, **given: Any) -> None:
    """Sweep over λ."""
    from dami_merge.sweep.sweep_results import SweepFiles
    from dami_router.collecting.settings import QuestionSettings
    from dami_router.commands.asked_questions import questions_to_ask

    plan = _plan(given)
    dataset, known, grader, grade = questions_to_ask(
        given["dataset"], given["grade"], limit=given["limit"], query_column=given["query_column"],
        answer_column=given["answer_column"], config=given["config"], split=given["split"], system=given["system"],
    )  # fmt: skip
    if grader is None:
        raise MisuseError("the questions have no expected answers, so no λ can be measured", hint="--answer-column")
    settings = QuestionSettings(
        grade, given["template"], given["system"], given["max_tokens"], given["temperature"], given["seed"],
        keep_thoughts=False, pair=f"path {given['along']}, template {given['chat_template']}, dtype {given['dtype']}",
    )  # fmt: skip
    files = SweepFiles(given["out"])
    output.note(f"{amount(len(dataset.questions), 'question')} from `{dataset.query_column}`; grading: {grade}")
    try:
        files.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FailureError(f"{files.folder}: cannot be written: {error.strerror}") from None
    try:
        _run(output, given, files, dataset, known, grader, settings, plan)
    finally:
        grader.close()


def _plan(given: dict[str, Any]) -> SweepPlan:
    from dami_merge.interpolation.path import parse_path
    from dami_merge.sweep.sweep_plan import SweepPlan

    parse_path(given["along"])
    caps = given["caps"]
    limits = None if caps is None else () if caps.strip() == "none" else tuple(whole_numbers(caps, "--caps"))
    lambdas = tuple(numbers(given["lambdas"], "--lambdas"))
    if given["max_length"] and given["url"]:
        raise MisuseError("--max-length is for `dami live`, which --url replaces")
    return SweepPlan(
        lambdas, given["most"], precision=given["precision"] / 100, max_tokens=given["max_tokens_total"], caps=limits
    )


def _run(
    output: Output, given: dict[str, Any], files: SweepFiles, dataset: Dataset, known: dict[str, Question],
    grader: Grader, settings: QuestionSettings, plan: SweepPlan,
) -> None:  # fmt: skip
    import asyncio

    from dami_merge.sweep.sweep_server import live_server
    from dami_merge.sweep.sweeping import Sweep
    from dami_router.config.router_yml import parse_config
    from dami_router.router import Router

    with ExitStack() as stack:
        url = given["url"]
        if url is None:
            output.note(f"starting dami live with {given['instruct']} and {given['thinking']}")
            url = stack.enter_context(live_server(_arguments(given, files), files.folder / "live.log"))

        async def work() -> tuple[Sweep, str]:
            async with Router(parse_config(_router_yml(url, given))) as router:
                name = _checked(router, url, given)
                run = Sweep(
                    router, dataset, known, grader, settings, plan, files.answers, given["concurrency"],
                    given["patience"], output.note,
                )  # fmt: skip
                await run.run()
                return run, name

        run, name = asyncio.run(work())
    _finish(output, given, files, run, name)


def _arguments(given: dict[str, Any], files: SweepFiles) -> list[str]:
    """Return the arguments of `dami live`; its own limits must not end a long answer."""
    from dami_router.shared.durable import write_atomically

    section = files.folder / "live.yml"
    limits = f"timeouts: {{first_byte: {_DAY}, idle: {_DAY}, total: {_DAY}}}\n"
    write_atomically(section, limits.encode())
    arguments = [given["instruct"], given["thinking"], "--router", str(section), "--no-ui"]
    for option, key in (
        ("--device", "device"), ("--dtype", "dtype"), ("--path", "along"), ("--chat-template", "chat_template"),
        ("--max-length", "max_length"), ("--max-rows", "concurrency"),
    ):  # fmt: skip
        arguments += [option, str(given[key])] if given[key] is not None else []
    return arguments


def _router_yml(url: str, given: dict[str, Any]) -> str:
    import json

    instruct, thinking = json.dumps(given["instruct"]), json.dumps(given["thinking"])
    backend = f"{{url: {json.dumps(url)}, protocol: live, instruct: {instruct}, thinking: {thinking}}}"
    return f"backends: [{backend}]\ntimeouts: {{first_byte: {_DAY}, idle: {_DAY}, total: {_DAY}}}\n"


def _checked(router: Router, url: str, given: dict[str, Any]) -> str:
    """Return the server's name for the pair; raises if it is no live server, or has another path."""
    from dami_router.messages.pinning import LIVE

    if wrong := next((r for r in router.fleet.replicas if r.health == "wrong"), None):
        raise MisuseError(
            f"{url}: {wrong.trouble}",
            hint="name the server's own endpoints, INSTRUCT first; or start `dami live` with these two",
        )
    for replica in router.fleet.of(LIVE):
        info = replica.identity.info if replica.identity else {}
        live = info.get("live")
        if not isinstance(live, dict):
            raise FailureError(f"{url}: no live server answers", hint="dami live INSTRUCT THINKING")
        if given["url"] and live.get("path") not in (None, given["along"]):
            raise MisuseError(f"{url}: its path is {live['path']!r:.80}, not {given['along']!r:.80}", hint="--path")
        known = str(info.get("model_id") or "live")
        # Endpoints without a common name are served as `live`: their folder's name says more.
        return str(given["name"] or (Path(given["instruct"]).resolve().parent.name if known == "live" else known))
    raise FailureError(f"{url}: no live server answers", hint="dami live INSTRUCT THINKING")


def _finish(output: Output, given: dict[str, Any], files: SweepFiles, run: Sweep, name: str) -> None:
    from dami_merge.sweep.sweep_plan import clear_steps, frontier_lambdas
    from dami_merge.sweep.sweep_results import RecipeFacts, family_name, noise_of, table_of, write_results

    grid, rows = run.grid(), run.rollouts()
    benchmark = given["benchmark"] or run.dataset.name.rsplit("/", 1)[-1].split(".")[0]
    instruct, thinking = map(_place, (given["instruct"], given["thinking"]))
    facts = RecipeFacts(instruct, thinking, family_name(name), given["along"], given["chat_template"], given["dtype"])
    write_results(files, grid, rows, facts, benchmark)
    front = frontier_lambdas(grid)
    data = {
        "out": str(files.folder), "rollouts": str(files.rollouts), "recipe": str(files.recipe),
        "report": str(files.report / "report.html"), "questions": run.asked, "lambdas": list(grid.lambdas),
        "frontier": front, "clear_steps": clear_steps(grid), "caps": list(run.caps), "stopped": run.stopped,
        "tokens": run.spent,
    }  # fmt: skip
    kept = ", ".join(f"{x:g}" for x in front)
    output.result(
        f"{table_of(grid)}\nstopped: {run.stopped}; {run.spent:,.0f} tokens in all\non the frontier: λ = {kept}\n"
        f"wrote {files.rollouts}, {files.recipe} and {files.report}/report.html",
        data,
    )
    if noise := noise_of(grid):
        output.warning(f"{noise}; build fewer λ, or ask more questions")
    manifest = "family/dami_family.json"
    device = "" if given["device"] == "cpu" else f" --device {given['device']}"
    output.hint(f"dami live {files.recipe}{device}   (serves every λ from the two checkpoints; nothing is built)")
    output.hint(f"dami eval {files.rollouts}   (what routing adds)")
    only = "" if front == list(grid.lambdas) else f" --lambdas {','.join(f'{x:g}' for x in front)}"
    output.hint(f"dami train {files.rollouts}{only} --out estimator")
    output.hint(f"dami build {files.recipe} family")
    output.hint(f"dami eval {files.rollouts} --write-manifest {manifest} --benchmark {benchmark}")
    output.hint("dami push family --namespace YOU")


def _place(endpoint: str) -> str:
    """Return a folder's whole path, and a Hub id as it is: the recipe may be read from anywhere."""
    return str(Path(endpoint).resolve()) if Path(endpoint).is_dir() else endpoint
