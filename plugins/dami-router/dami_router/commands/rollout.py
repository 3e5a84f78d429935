"""`dami rollout`: run every query on every variant, and grade the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from dami_router.cli import command
from dami_router.commands.shared_options import asking_options, dataset_options, numbers, whole_numbers
from dami_router.errors import MisuseError
from dami_router.output import Output
from dami_router.shared.suggestions import amount

__all__ = ["rollout"]


@command(
    "rollout",
    examples=(
        "dami rollout router.yml --dataset questions.jsonl --out rollouts.jsonl",
        "dami rollout router.yml --dataset openai/gsm8k --config main --split test --limit 200 --out rollouts.jsonl",
        "dami rollout router.yml --dataset q.csv --out r.jsonl --temperature 0.6 --samples 4 --max-tokens 8192",
        "dami rollout live.yml --dataset q.jsonl --out r.jsonl --lambdas 0,0.25,0.5,0.75,1",
        "dami rollout live.yml --dataset q.jsonl --out r.jsonl --lambdas 0,0.5,1 --caps 256,1024,4096",
    ),
    help="Run every query of a dataset on every variant in router.yml, grade the answers, and write one rollout per "
    "line, for `dami train` and `dami eval`. If it is interrupted, run the same command again to resume; it also "
    "continues after you add queries, variants or samples. Requests that fail are reported, retried in the next run, "
    "and never recorded as wrong answers; the exit code is then 1.",
)
@click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--dataset", required=True, help="A JSONL, CSV or parquet file, or a dataset's id on the Hub.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The rollouts (.jsonl); an existing file is continued.",
)
@dataset_options
@click.option("--answer-column", help="Column of the expected answers. Default: found by its usual names.")
@click.option("--only", type=float, multiple=True, help="Run only the variant at this λ; repeatable.")
@click.option("--lambdas", help="For live servers: the values of λ to run, such as 0,0.25,0.5.")
@click.option(
    "--caps", help="Also run the largest λ with these limits of its thinking tokens, such as 256,1024: the rival."
)
@click.option("--caps-at", help="With --caps: the values of λ to limit, such as 0.6,1. Default: the largest.")
@click.option("--samples", type=click.IntRange(1, 1000), default=1, show_default=True, help="Answers per query.")
@click.option(
    "--grade", type=click.Choice(["exact", "numeric", "choice", "math-verify", "none"]),
    help="How answers are compared. Default: numeric if every expected answer is a number, choice if every one is a "
    "letter, else exact. With none, rows "
    "have no `correct`; add it with your own grader.",
)  # fmt: skip
@asking_options
@click.option("--seed", type=click.IntRange(0, 2**31), help="Sent with each request, plus the sample's index.")
@click.option("--body", help="Additional fields of each request, as JSON, such as '{\"top_p\": 0.95}'.")
@click.option("--keep-thoughts", is_flag=True, help="Keep thoughts in `answer`; grading never sees them.")
@click.option(
    "--concurrency", type=click.IntRange(1, 4096), default=8, show_default=True,
    help="Requests in flight per variant, and for all live servers together.",
)  # fmt: skip
@click.option(
    "--patience", type=click.FloatRange(min=0), default=60.0, show_default=True,
    help="Seconds during which a failing request is retried.",
)  # fmt: skip
def rollout(
    output: Output, config_file: Path, dataset: str, out: Path, config: str | None, split: str | None,
    query_column: str | None, answer_column: str | None, limit: int | None, only: tuple[float, ...],
    lambdas: str | None, caps: str | None, caps_at: str | None, samples: int, grade: str | None, template: str,
    system: str | None, max_tokens: int | None, temperature: float, seed: int | None, body: str | None,
    keep_thoughts: bool, concurrency: int, patience: float,
) -> int:  # fmt: skip
    """Collect rollouts."""
    import asyncio

    from dami_router.collecting.settings import QuestionSettings
    from dami_router.commands.asked_questions import questions_to_ask
    from dami_router.commands.rollout_run import RolloutRun

    if samples > 1 and temperature == 0:
        raise MisuseError("greedy answers are all the same: use --samples 1, or sample", hint="--temperature 0.6")
    listed, limits, limited = (
        numbers(lambdas, "--lambdas"),
        whole_numbers(caps, "--caps"),
        numbers(caps_at, "--caps-at"),
    )
    if limited and not limits:
        raise MisuseError("--caps-at needs --caps")
    found, known, grader, name = questions_to_ask(
        dataset, grade, limit=limit, query_column=query_column, answer_column=answer_column, config=config,
        split=split, system=system,
    )  # fmt: skip
    settings = QuestionSettings(name, template, system, max_tokens, temperature, seed, _fields(body), keep_thoughts)
    columns = f"`{found.query_column}`" + (f" and `{found.answer_column}`" if found.answer_column else "")
    output.note(f"{amount(len(found.questions), 'question')} from {columns}; grading: {name}")
    run = RolloutRun(output, found, grader, settings, out, samples, concurrency, patience, limits, limited)
    try:
        return asyncio.run(run.collect(config_file, only, listed, known))
    finally:
        if grader is not None:
            grader.close()


def _fields(body: str | None) -> dict[str, Any]:
    try:
        fields = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise MisuseError("--body expects a JSON object", hint="such as '{\"top_p\": 0.95}'")
    return fields
