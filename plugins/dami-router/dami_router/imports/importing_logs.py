"""From logged answers to rollouts: λ, tokens, a grade, and whether the answer thinks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dami_router.datasets.finding import open_table
from dami_router.datasets.tables import SUFFIXES
from dami_router.errors import MisuseError
from dami_router.grading import Grader, grader_for, grader_named
from dami_router.imports.batch_file import BatchFile
from dami_router.imports.lm_eval_log import LmEvalLog
from dami_router.imports.logged import ImportChoices, LogFormat, LoggedAnswer
from dami_router.imports.open_compass import OpenCompassLog, whole_object
from dami_router.imports.problems import Problems
from dami_router.imports.router_bench import RouterBenchTable
from dami_router.imports.token_counts import TokenCounter
from dami_router.imports.which_lambda import LambdaNames
from dami_router.messages.thinking import split_thinking
from dami_router.rollouts.records import Rollout
from dami_router.shared.suggestions import listed

__all__ = ["FORMATS", "LogImport", "log_files"]

FORMATS: tuple[LogFormat, ...] = (LmEvalLog(), BatchFile(), RouterBenchTable(), OpenCompassLog())
_KNOWN = "supported: lm-evaluation-harness samples, batch files, RouterBench tables, OpenCompass predictions or details"
_BLOCK = 256


@dataclass
class LogImport:
    """One import. `counted`: answers whose tokens were counted; `thoughts`: answers with thoughts; `formats`: seen."""

    lambdas: LambdaNames
    choices: ImportChoices
    grade: str | None = None
    tokenizer: str | None = None
    counted: int = 0
    thoughts: int = 0
    grading: str | None = None
    formats: Counter[str] = field(default_factory=Counter)
    _counter: TokenCounter | None = None
    _seen: set[tuple[Path, str]] = field(default_factory=set)

    def rollouts(self, files: Sequence[Path]) -> list[Rollout]:
        """Return all rollouts; raises MisuseError for an unknown format, and for two answers to one query at one λ."""
        problems = Problems()
        found = []
        for file in files:
            with problems.collected():
                found += list(self._read(file, problems))
        if not found and not problems.found:
            raise MisuseError("the logs have no answers")
        grader = None
        if not problems.found:
            with problems.collected():
                self._require_used()
        with problems.collected():
            self._require_counts([answer for _, answer in found])
        with problems.collected():
            grader = self._grader([answer for _, answer in found])
        problems.report()
        try:
            made = list(self._made(found, grader))
        finally:
            if grader is not None:
                grader.close()
        _refuse_twice(made, found)
        return made

    def _read(self, file: Path, problems: Problems) -> Iterator[tuple[float, LoggedAnswer]]:
        kind = _kind(file)
        self.formats[kind.name] += 1
        known: dict[str, float] = {}

        def wanted(model: str) -> bool:
            self._seen.add((file, model))
            return self.lambdas.find(file, model) is not None

        for answer in kind.read(file, replace(self.choices, wanted=wanted, problem=problems.add)):
            if answer.model not in known:
                self._seen.add((file, answer.model))
                known[answer.model] = 0.0  # never used if the next line has a problem: that is raised in the end
                with problems.collected():
                    known[answer.model] = self._lambda(file, answer.model)
            yield known[answer.model], answer

    def _lambda(self, file: Path, model: str) -> float:
        found = self.lambdas.of(file, model)
        if self.lambdas.find(file, model) is None:
            self.choices.note(f"λ = {found:g} by the endpoint's name: {model or file}")
        return found

    def _require_used(self) -> None:
        if idle := self.lambdas.idle(self._seen):
            names = list(dict.fromkeys(model or path.name for path, model in sorted(self._seen)))
            raise MisuseError(
                f"--lambda '{idle[0]:.60}=…': no log and no model has that name",
                hint=f"there are {listed(f'`{name:.60}`' for name in names[:8])}" if names else None,
            )

    def _require_counts(self, answers: Sequence[LoggedAnswer]) -> None:
        lacking = next((answer for answer in answers if answer.tokens is None), None)
        if lacking is not None and self.tokenizer is None and self._counter is None:
            raise MisuseError(
                f"{lacking.where}: the log has no token counts", hint="count them: --tokenizer FOLDER or HUB_ID"
            )

    def _grader(self, answers: Sequence[LoggedAnswer]) -> Grader | None:
        """Return the grader, None if the logs' own scores count."""
        lacking = [answer for answer in answers if answer.score is None]
        if self.grade is None and not lacking:
            self.grading = "the log's own score"
            return None
        if self.grade is None and len(lacking) < len(answers):
            raise MisuseError(f"{lacking[0].where}: has no score, but others have", hint="grade all with --grade")
        if self.grade is None and not any(answer.expected for answer in lacking):
            raise MisuseError(f"{lacking[0].where}: has neither a score nor an expected answer")
        expected = [x for answer in answers for x in answer.expected or (None,)]
        self.grading = self.grade or grader_for(expected)
        grader = grader_named(self.grading)
        for answer in answers:
            why = "is missing" if not answer.expected else next(
                (said for x in answer.expected if grader and (said := grader.unfit(x))), None)  # fmt: skip
            if why and grader is not None:
                raise MisuseError(f"{answer.where}: the expected answer {why} ({grader.name})", hint="see --grade")
        return grader

    def _made(self, found: Sequence[tuple[float, LoggedAnswer]], grader: Grader | None) -> Iterator[Rollout]:
        for start in range(0, len(found), _BLOCK):
            block = found[start : start + _BLOCK]
            counts = self._counts([answer for _, answer in block if answer.tokens is None])
            for lambda_, answer in block:
                tokens = next(counts) if answer.tokens is None else answer.tokens
                yield self._rollout(lambda_, answer, tokens, grader)

    def _rollout(self, lambda_: float, logged: LoggedAnswer, tokens: float, grader: Grader | None) -> Rollout:
        answers = [split_thinking(text) for text in logged.texts]
        think = logged.thought or any(thoughts is not None for thoughts, _ in answers)
        self.thoughts += think
        score = logged.score
        if grader is not None:
            each = [max(grader.grade(text, x) for x in logged.expected) for _, text in answers]
            score = sum(each) / len(each)
        return Rollout(
            logged.query_id, logged.query, lambda_, score or 0.0, tokens, model=logged.model or None,
            answer=answers[0][1], expected=logged.expected[0] if logged.expected else None,
            finish_reason=logged.finish_reason, think=think, sample=logged.sample, system=logged.system,
        )  # fmt: skip

    def _counts(self, answers: Sequence[LoggedAnswer]) -> Iterator[float]:
        """Yield the mean tokens of each answer's samples."""
        if not answers:
            return
        if self._counter is None:
            self._counter = TokenCounter(str(self.tokenizer))
        self.counted += len(answers)
        counts = iter(self._counter([text for answer in answers for text in answer.texts]))
        for answer in answers:
            yield sum(next(counts) for _ in answer.texts) / len(answer.texts)


def log_files(places: Sequence[Path]) -> list[Path]:
    """Return the files of logs: those given, and in folders `samples_*.jsonl` and `predictions/**/*.json`.

    Raises MisuseError for a place that does not exist, or a folder without logs.
    """
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise MisuseError(f"{place}: no such file or folder")
        if place.is_dir():
            inside = sorted([*place.rglob("samples_*.jsonl"), *place.rglob("predictions/**/*.json")])
            if not inside:
                raise MisuseError(f"{place}: has no samples_*.jsonl and no predictions/", hint="name the files")
            found += inside
        else:
            found.append(place)
    return list(dict.fromkeys(found))


def _kind(file: Path) -> LogFormat:
    name = file.name.lower()
    if name.endswith((".pkl", ".pickle")):
        raise MisuseError(
            f"{file}: a pickle runs code when it is read, so it is refused",
            hint=f"python -c \"import pandas; pandas.read_pickle('{file.name}').to_parquet('{file.stem}.parquet')\"",
        )
    first: Any = whole_object(file) if name.endswith(".json") else None
    if first is None or not OpenCompassLog().fits(file, first):
        if not name.endswith(SUFFIXES):
            raise MisuseError(f"{file}: unsupported file type", hint=_KNOWN)
        table = open_table(file)
        columns = table.columns
        first = next((row for _, row in table.rows(columns)), None) if columns else None
    for kind in FORMATS:
        if kind.fits(file, first):
            return kind
    shape = f"its first row has {listed(f'`{name!s:.40}`' for name in list(first)[:8])}" if first else "it has no rows"
    raise MisuseError(f"{file}: not a known log: {shape}", hint=_KNOWN)


def _refuse_twice(rollouts: Sequence[Rollout], found: Sequence[tuple[float, LoggedAnswer]]) -> None:
    seen: dict[tuple[str, float, int | None], str] = {}
    for rollout, (_, answer) in zip(rollouts, found, strict=True):
        key = rollout.query_id, round(rollout.lambda_, 6), rollout.sample
        if key in seen:
            raise MisuseError(
                f"{answer.where}: a second answer to `{rollout.query_id:.60}` at λ={rollout.lambda_:g}; the first is"
                f" {seen[key]}",
                hint="leave out one of the files, or give them different λ with --lambda",
            )
        seen[key] = answer.where
