"""`dami rollout`: every question to every variant, graded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dami_router.cli import command
from dami_router.errors import MisuseError
from dami_router.output import Output, table

if TYPE_CHECKING:
    from dami_router.collecting.journal import Journal
    from dami_router.collecting.run import Outcome
    from dami_router.collecting.settings import Settings
    from dami_router.collecting.summary import Tally
    from dami_router.datasets import Dataset, Question
    from dami_router.grading import Grader
    from dami_router.router import Router

__all__ = ["rollout"]

_MANY_CUT_OFF = 0.05


@command(
    "rollout",
    examples=(
        "dami rollout router.yml --dataset questions.jsonl --out rollouts.jsonl",
        "dami rollout router.yml --dataset openai/gsm8k --config main --split test --limit 200 --out rollouts.jsonl",
        "dami rollout router.yml --dataset q.csv --out r.jsonl --temperature 0.6 --samples 4 --max-tokens 8192",
        "dami rollout live.yml --dataset q.jsonl --out r.jsonl --lambdas 0,0.25,0.5,0.75,1",
    ),
    help="Ask every question of a dataset of every variant that router.yml serves, grade the answers, and write one "
    "rollout a line: what `dami train` and `dami eval` read. Stopped at any moment, the same command goes on with what "
    "is missing; it also goes on where questions, variants or samples were added. What could not be answered is "
    "reported, left for the next run, and never written down as wrong: exit code 1.",
)
@click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path))
@click.option("--dataset", required=True, help="A JSONL, CSV or parquet file, or a dataset's id on the Hub.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The rollouts, a .jsonl; gone on with if there."
)
@click.option("--config", help="The configuration of a Hub dataset.")
@click.option("--split", help="The split of a Hub dataset.")
@click.option("--query-column", help="The questions' column; found by its usual names otherwise.")
@click.option("--answer-column", help="The expected answers' column; found by its usual names otherwise.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first questions.")
@click.option("--only", type=float, multiple=True, help="Ask the variant at this λ alone; may be given several times.")
@click.option("--lambdas", help="For live servers: the λ to ask for, such as 0,0.25,0.5.")
@click.option("--samples", type=click.IntRange(1, 1000), default=1, show_default=True, help="Answers to each question.")
@click.option(
    "--grade", type=click.Choice(["exact", "numeric", "math-verify", "none"]),
    help="How answers are compared; by default numeric where every expected answer is a number, else exact. "
    "With none, rows have no `correct`, for a grader of your own to add.",
)  # fmt: skip
@click.option("--template", default="{query}", help="What is asked, with {query} for the question.")
@click.option("--system", help="A system message.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="The longest answer, thoughts included.")
@click.option("--temperature", type=click.FloatRange(0, 5), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=click.IntRange(0, 2**31), help="Sent with each request, plus the sample's number.")
@click.option("--body", help="Further fields of each request, as JSON, such as '{\"top_p\": 0.95}'.")
@click.option("--keep-thoughts", is_flag=True, help="Keep thoughts in `answer`; grading never sees them.")
@click.option(
    "--concurrency", type=click.IntRange(1, 4096), default=8, show_default=True,
    help="Requests at a time for each variant, and for all live servers together.",
)  # fmt: skip
@click.option(
    "--patience", type=click.FloatRange(min=0), default=60.0, show_default=True,
    help="Seconds for which a failing request is tried again.",
)  # fmt: skip
def rollout(
    output: Output, config_file: Path, dataset: str, out: Path, config: str | None, split: str | None,
    query_column: str | None, answer_column: str | None, limit: int | None, only: tuple[float, ...],
    lambdas: str | None, samples: int, grade: str | None, template: str, system: str | None, max_tokens: int | None,
    temperature: float, seed: int | None, body: str | None, keep_thoughts: bool, concurrency: int, patience: float,
) -> int:  # fmt: skip
    """Collect rollouts."""
    import asyncio
    from dataclasses import replace

    from dami_router.collecting.settings import Settings
    from dami_router.datasets import load_dataset
    from dami_router.grading import grader_for, grader_named

    if samples > 1 and temperature == 0:
        raise MisuseError("--samples 1 is enough of greedy answers: they are all the same", hint="--temperature 0.6")
    listed = _lambdas(lambdas)
    whole = load_dataset(dataset, query_column=query_column, answer_column=answer_column, config=config, split=split)
    found = replace(whole, questions=whole.questions[:limit])
    name = grade or grader_for(q.expected for q in found.questions)
    grader = grader_named(name)
    _check_expected(found, grader)
    settings = Settings(name, template, system, max_tokens, temperature, seed, _fields(body), keep_thoughts)
    columns = f"`{found.query_column}`" + (f" and `{found.answer_column}`" if found.answer_column else "")
    output.note(f"{len(found.questions):,} questions from {columns}; grading: {name}")
    run = _Run(output, found, grader, settings, out, samples, concurrency, patience)
    known = {question.id: question for question in whole.questions}
    try:
        return asyncio.run(run.collect(config_file, only, listed, known))
    finally:
        if grader is not None:
            grader.close()


class _Run:
    """One call of the command, from the router to the summary."""

    def __init__(
        self, output: Output, dataset: Dataset, grader: Grader | None, settings: Settings, out: Path, samples: int,
        concurrency: int, patience: float,
    ) -> None:  # fmt: skip
        self._output, self._dataset, self._grader, self._settings = output, dataset, grader, settings
        self._out, self._samples, self._concurrency, self._patience = out, samples, concurrency, patience

    async def collect(
        self, config: Path, only: tuple[float, ...], lambdas: list[float], known: dict[str, Question]
    ) -> int:
        """Ask for what is missing and sum up; returns the exit code. `known` may be answered already."""
        from dataclasses import replace

        from dami_router.collecting.journal import journal
        from dami_router.collecting.plan import pair_of, targets
        from dami_router.router import Router

        async with Router.from_file(config) as router:
            router.require_usable()
            wanted = targets(router, only, lambdas)
            settings = replace(self._settings, pair=pair_of(router, wanted))
            with journal(self._out, settings, self._dataset.name) as opened:
                if opened.repaired:
                    self._output.note(f"{self._out}: half a line at its end, as a crash leaves it, was removed")
                opened.check(known, {t.lambda_: t.model for t in wanted})
                outcome = await self._ask(router, wanted, opened)
        return self._report(outcome)

    async def _ask(self, router: Router, wanted: list[Any], opened: Journal) -> Outcome:
        from dami_router.collecting.plan import lanes
        from dami_router.collecting.progress import Progress
        from dami_router.collecting.run import Collector

        work = lanes(wanted, self._dataset.questions, self._samples, opened.done)
        missing = sum(map(len, work))
        there = f"; {len(opened.done):,} are there already" if opened.done else ""
        self._output.note(f"{missing:,} rollouts to collect at λ = {_list(t.lambda_ for t in wanted)}{there}")
        collector = Collector(
            router, self._settings, self._grader, concurrency=self._concurrency, patience=self._patience
        )
        progress = Progress(missing, collector.outcome, self._output.note)
        return await collector.run(work, opened, progress)

    def _report(self, outcome: Outcome) -> int:
        from dami_router.collecting.journal import rollouts_of
        from dami_router.collecting.summary import HEADER, summed_up

        tallies = summed_up(rollouts_of(self._out), graded=self._grader is not None)
        text = table(HEADER, [tally.row() for tally in tallies]) if tallies else "no rollouts yet"
        overran = getattr(self._grader, "overran", 0)
        facts: dict[str, Any] = {
            "out": str(self._out), "dataset": self._dataset.name, "questions": len(self._dataset.questions),
            "grade": self._settings.grade, "written": outcome.written, "left": outcome.left,
            "failures": dict(outcome.failures), "not_compared_in_time": overran,
            "lambdas": [tally.as_dict() for tally in tallies],
        }  # fmt: skip
        self._output.result(f"{text}\n{outcome.written:,} new rollouts in {self._out}", facts)
        self._warn(tallies, overran)
        if outcome.left:
            for reason, count in outcome.failures.most_common(10):
                self._output.warning(f"{count:,} × {reason}")
            self._output.note(f"{outcome.left:,} rollouts are missing; run the same command again to ask for them")
            return 1
        if self._settings.grade == "none":
            self._output.hint(f"grade {self._out} (add `correct` to each line), then dami train")
        else:
            self._output.hint(f"dami eval {self._out}   or   dami train {self._out} --out estimator")
        return 0

    def _warn(self, tallies: list[Tally], overran: int) -> None:
        for tally in tallies:
            if tally.cut / tally.n > _MANY_CUT_OFF:
                self._output.warning(
                    f"{tally.cut / tally.n:.0%} of the answers at λ={tally.lambda_:g} were cut off; raise --max-tokens"
                )
        if overran:
            self._output.warning(f"{overran} answers could not be compared in time, and count as wrong")


def _check_expected(dataset: Dataset, grader: Grader | None) -> None:
    if grader is None:
        return
    for question in dataset.questions:
        if question.expected is None:
            column = dataset.answer_column
            lacks = f"`{column}` is empty" if column else "there is no column of expected answers"
            raise MisuseError(f"{question.where}: {lacks}", hint="--answer-column names it; --grade none needs none")
        if why := grader.unfit(question.expected):
            hint = "--grade exact, or math-verify" if grader.name == "numeric" else None
            raise MisuseError(f"{question.where}: the expected answer {question.expected!r:.60} {why}", hint=hint)


def _lambdas(text: str | None) -> list[float]:
    try:
        return [float(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        raise MisuseError(f"--lambdas: {text!r:.60}: expected numbers such as 0,0.25,0.5") from None


def _fields(body: str | None) -> dict[str, Any]:
    try:
        fields = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise MisuseError("--body expects a JSON object", hint="for instance '{\"top_p\": 0.95}'")
    return fields


def _list(lambdas: Any) -> str:
    return ", ".join(f"{x:g}" for x in lambdas)
