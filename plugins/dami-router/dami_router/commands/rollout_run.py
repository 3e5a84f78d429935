"""One call of `dami rollout`, from the router to the summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dami_router.collecting.asking import RolloutTarget
from dami_router.collecting.caps import require_caps
from dami_router.collecting.rollout_journal import RolloutJournal, journal, rollouts_of
from dami_router.collecting.run import Collector, Outcome
from dami_router.collecting.run_progress import Progress
from dami_router.collecting.settings import QuestionSettings
from dami_router.collecting.summary import HEADER, Tally, summed_up
from dami_router.collecting.targets import lanes, pair_of, targets, with_caps
from dami_router.datasets import Dataset, Question
from dami_router.grading import Grader
from dami_router.output import Output, table
from dami_router.router import Router
from dami_router.shared.suggestions import amount

__all__ = ["RolloutRun"]

_MANY_CUT_OFF = 0.05


class RolloutRun:
    """One call of the command, from the router to the summary."""

    def __init__(
        self, output: Output, dataset: Dataset, grader: Grader | None, settings: QuestionSettings, out: Path,
        samples: int, concurrency: int, patience: float, caps: Sequence[int] = (), caps_at: Sequence[float] = (),
    ) -> None:  # fmt: skip
        self._output, self._dataset, self._grader, self._settings = output, dataset, grader, settings
        self._out, self._samples, self._concurrency, self._patience = out, samples, concurrency, patience
        self._caps, self._caps_at = caps, caps_at

    async def collect(
        self, config: Path, only: tuple[float, ...], lambdas: list[float], known: dict[str, Question]
    ) -> int:
        """Collect the missing answers and print a summary; returns the exit code. `known` may be answered already."""
        async with Router.from_file(config) as router:
            router.require_usable()
            wanted = targets(router, only, lambdas)
            settings = replace(self._settings, pair=pair_of(router, wanted))
            if self._caps:
                wanted = with_caps(wanted, self._caps, self._caps_at)
            with journal(self._out, settings, self._dataset.name) as opened:
                if opened.repaired:
                    self._output.note(f"{self._out}: removed an incomplete last line, left by a crash")
                opened.check(known, {t.lambda_: t.model for t in wanted})
                outcome = await self._ask(router, wanted, opened)
        return self._report(outcome)

    async def _ask(self, router: Router, wanted: list[RolloutTarget], opened: RolloutJournal) -> Outcome:
        work = lanes(wanted, self._dataset.questions, self._samples, opened.done)
        missing = sum(map(len, work))
        await require_caps(router, self._settings, [item for lane in work for item in lane])
        there = f"; {len(opened.done):,} already present" if opened.done else ""
        self._output.note(f"{missing:,} rollouts to collect at λ = {', '.join(map(_named, wanted))}{there}")
        collector = Collector(
            router, self._settings, self._grader, concurrency=self._concurrency, patience=self._patience
        )
        progress = Progress(missing, collector.outcome, self._output.note)
        return await collector.run(work, opened, progress)

    def _report(self, outcome: Outcome) -> int:
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
            self._output.note(f"{outcome.left:,} rollouts are missing; run the same command again to collect them")
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
                    f"{tally.cut / tally.n:.0%} of the answers at λ={tally.row()[0]} were cut off; raise --max-tokens"
                )
        if overran:
            self._output.warning(
                f"{amount(overran, 'answer')} could not be compared within the time limit, and counted as wrong"
            )


def _named(target: RolloutTarget) -> str:
    return f"{target.lambda_:g}" if target.cap is None else f"{target.lambda_:g} with cap {target.cap}"
