"""`dami rollout import`: make rollouts from the logs of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dami_router.cli import command
from dami_router.errors import FailureError, MisuseError
from dami_router.output import Output, table
from dami_router.shared.suggestions import amount

if TYPE_CHECKING:
    from dami_router.datasets import Question
    from dami_router.imports.importing_logs import LogImport
    from dami_router.rollouts.records import Rollout

__all__ = ["rollout_import"]


@command(
    "rollout import",
    examples=(
        "dami rollout import results/ --filter flexible-extract --tokenizer Qwen/Qwen3-4B-Thinking-2507 --out r.jsonl",
        "dami rollout import lambda-0.jsonl lambda-0.5.jsonl lambda-1.jsonl --dataset questions.jsonl --out r.jsonl",
        "dami rollout import instruct.jsonl thinking.jsonl --lambda instruct=0 --lambda thinking=1 --dataset q.csv "
        "--out r.jsonl",
        "dami rollout import routerbench.parquet --lambda gpt-4-1106-preview=1 --lambda mistralai/mistral-7b-chat=0 "
        "--tokenizer mistralai/Mistral-7B-Instruct-v0.2 --out r.jsonl",
    ),
    help="Make rollouts from evaluations that other tools have run: samples of lm-evaluation-harness (--log_samples), "
    "OpenAI batch files (`vllm run-batch`), RouterBench's wide tables, predictions or details of OpenCompass. The "
    "format is detected. A folder stands for the logs in it. λ comes from --lambda, or from the name of the model, the "
    "file or a folder (lambda-0.5, NAME-l050, dami:0.5, NAME-Instruct, NAME-Thinking).",
)
@click.argument("logs", metavar="LOG…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The rollouts to write; must not exist.")
@click.option(
    "--lambda", "lambdas", multiple=True, metavar="[NAME=]λ",
    help="λ of all answers, or of the logs and models whose names contain NAME; repeatable.",
)  # fmt: skip
@click.option(
    "--tokenizer", metavar="FOLDER|HUB_ID",
    help="The variants' tokenizer, to count the tokens of answers whose log has no count.",
)  # fmt: skip
@click.option("--dataset", help="The questions of a batch file: a file or a Hub id; ids are the batch's custom_id.")
@click.option("--config", help="The configuration of a Hub dataset.")
@click.option("--split", help="The split of a Hub dataset.")
@click.option("--query-column", help="Column of the queries, or their field in lm-evaluation-harness's `doc`.")
@click.option("--answer-column", help="Column of the expected answers in the dataset.")
@click.option(
    "--grade", type=click.Choice(["exact", "numeric", "choice", "math-verify"]),
    help="Grade the answers anew. Default: the log's own score; where it has none, as in `dami rollout`.",
)  # fmt: skip
@click.option("--metric", help="The metric of lm-evaluation-harness, such as exact_match.")
@click.option("--filter", "filter_", help="The filter of lm-evaluation-harness, such as flexible-extract.")
def rollout_import(
    output: Output, logs: tuple[Path, ...], out: Path, lambdas: tuple[str, ...], tokenizer: str | None,
    dataset: str | None, config: str | None, split: str | None, query_column: str | None, answer_column: str | None,
    grade: str | None, metric: str | None, filter_: str | None,
) -> None:  # fmt: skip
    """Import logs."""
    from dami_router.imports.importing_logs import LogImport, log_files
    from dami_router.imports.logged import ImportChoices
    from dami_router.imports.which_lambda import LambdaNames

    if out.exists():
        raise MisuseError(f"{out}: already exists", hint="choose another --out, or remove it")
    if not out.name.endswith((".jsonl", ".jsonl.gz")):
        raise MisuseError(f"{out}: expected a name that ends in .jsonl or .jsonl.gz")
    given = {"--config": config, "--split": split, "--answer-column": answer_column}
    if dataset is None and (named := next((name for name, value in given.items() if value), None)):
        raise MisuseError(f"{named} needs --dataset")
    questions = _questions(dataset, query_column, answer_column, config, split) if dataset else {}
    choices = ImportChoices(metric, filter_, query_column, questions, note=output.note)
    run = LogImport(LambdaNames.parse(lambdas), choices, grade, tokenizer)
    made = run.rollouts(log_files(logs))
    _write(made, out)
    _report(output, run, made, out)


def _questions(
    dataset: str, query_column: str | None, answer_column: str | None, config: str | None, split: str | None
) -> dict[str, Question]:
    from dami_router.datasets import load_dataset

    found = load_dataset(dataset, query_column=query_column, answer_column=answer_column, config=config, split=split)
    return {question.id: question for question in found.questions}


def _write(made: list[Rollout], out: Path) -> None:
    from dami_router.rollouts.records import write_rollouts

    try:
        write_rollouts(made, out)
    except OSError as error:
        raise FailureError(f"{out}: cannot be written: {error.strerror}") from None


def _report(output: Output, run: LogImport, made: list[Rollout], out: Path) -> None:
    from dami_router.collecting.summary import HEADER, summed_up

    tallies = summed_up(made, graded=True)
    queries = len({rollout.query_id for rollout in made})
    facts: dict[str, Any] = {
        "out": str(out), "rollouts": len(made), "queries": queries, "graded_by": run.grading,
        "tokens_counted": run.counted, "formats": dict(run.formats), "lambdas": [tally.as_dict() for tally in tallies],
    }  # fmt: skip
    text = table(HEADER, [tally.row() for tally in tallies])
    counted = f"; tokens of {amount(run.counted, 'answer')} counted with {run.tokenizer}" if run.counted else ""
    output.result(
        f"{text}\n{amount(len(made), 'rollout')} of {amount(queries, 'query', 'queries')} in {out};"
        f" grade: {run.grading}{counted}",
        facts,
    )
    if run.counted and not run.thoughts:
        output.warning(
            "no answer contains </think>: if the tool removed thoughts before it logged them (think_end_token, a "
            "reasoning parser), the counted tokens are too few"
        )
    if any(tally.n != queries for tally in tallies if tally.n < queries):
        output.warning("some queries lack an answer at some λ: use --drop-incomplete in the next commands")
    if len(tallies) < 2:
        output.warning(f"only λ={tallies[0].lambda_:g}: training and evaluation need at least two λ")
    output.hint(f"dami eval {out}   or   dami train {out} --out estimator")
