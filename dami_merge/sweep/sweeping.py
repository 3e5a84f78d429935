"""The run: stages of λ and questions, each answered through a live server and stored before the next is planned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dami_merge.sweep.sweep_plan import (
    SweepPlan,
    cap_ladder,
    clearly_dominated,
    finer,
    frontier_lambdas,
    half_width,
    rounds_of,
)
from dami_router.collecting.asking import RolloutTarget
from dami_router.collecting.caps import require_caps
from dami_router.collecting.rollout_journal import RolloutJournal, journal, rollouts_of
from dami_router.collecting.run import Collector
from dami_router.collecting.run_progress import Progress
from dami_router.collecting.settings import QuestionSettings
from dami_router.collecting.targets import pair_of, targets, with_caps
from dami_router.datasets import Dataset, Question
from dami_router.errors import FailureError
from dami_router.grading import Grader
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.grid import Grid
from dami_router.rollouts.records import Rollout
from dami_router.router import Router
from dami_router.shared.suggestions import amount

__all__ = ["Sweep"]

Say = Callable[[str], None]


@dataclass
class Sweep:
    """One sweep. `known`: all questions of the dataset by id; `answers`: the file of all rollouts, which is continued.

    `lambdas`: the λ that still get questions; `asked`: the questions so far; `stopped`: why it ended.
    """

    router: Router
    dataset: Dataset
    known: dict[str, Question]
    grader: Grader | None
    settings: QuestionSettings
    plan: SweepPlan
    answers: Path
    concurrency: int
    patience: float
    say: Say
    lambdas: list[float] = field(default_factory=list)
    caps: tuple[int, ...] = ()
    asked: int = 0
    stopped: str = ""
    _rates: list[float] = field(default_factory=list)

    async def run(self) -> Grid:
        """Ask until the precision, the limit of tokens or the last question is reached; returns the kept λ's answers.

        Raises FailureError if answers are missing: run the same sweep again to collect them.
        """
        self.lambdas = sorted({round(x, 6) for x in self.plan.lambdas})
        settings = replace(self.settings, pair=f"{pair_of(self.router, self._targets())}; {self.settings.pair}")
        self.settings = settings
        with journal(self.answers, settings, self.dataset.name) as opened:
            if opened.repaired:
                self.say(f"{self.answers}: removed an incomplete last line, left by a crash")
            opened.check(self.known, {})
            rounds = rounds_of(len(self.dataset.questions))
            if not await self._stage(opened, rounds[0]):
                raise FailureError(f"--max-tokens-total: {self.stopped}", hint="raise it, or lower --limit")
            await self._refine(opened)
            await self._cap(opened)
            for count in rounds[1:]:
                if self._enough() or not await self._narrowed(opened, count):
                    break
            self.stopped = self.stopped or f"all {self.asked:,} questions were asked"
        return self.grid()

    @property
    def spent(self) -> float:
        """The tokens of all answers so far, also at λ that were dropped."""
        return float(sum(row.tokens for row in rollouts_of(self.answers)))

    def grid(self) -> Grid:
        """Return the answers of the λ and caps in play to the questions that all of them were asked."""
        return grid_of(self.rollouts())

    def rollouts(self) -> list[Rollout]:
        """Return the rollouts of the λ and caps in play, of the questions that all of them were asked."""
        ids = {question.id for question in self.dataset.questions[: self.asked]}
        top = max(self.lambdas)
        return [
            row
            for row in rollouts_of(self.answers)
            if row.query_id in ids
            and row.lambda_ in self.lambdas
            and (row.cap is None or (row.cap in self.caps and row.lambda_ == top))
        ]

    async def _refine(self, opened: RolloutJournal) -> None:
        while new := finer(self.grid(), self.plan):
            self.say(f"the curve bends: adding λ = {', '.join(f'{x:g}' for x in new)}")
            before = self.lambdas
            self.lambdas = sorted({*before, *new})
            if not await self._stage(opened, self.asked):
                self.lambdas = before
                return

    async def _cap(self, opened: RolloutJournal) -> None:
        caps = self.plan.caps
        if caps is None:
            caps = cap_ladder(float(self.grid().tokens[:, -1].mean()))
        if not caps or self.stopped:
            return
        self.say(f"the rival: λ = {max(self.lambdas):g} with caps of {', '.join(map(str, caps))} thinking tokens")
        self.caps = tuple(caps)
        try:
            if not await self._stage(opened, self.asked):
                self.caps = ()
        except FailureError as error:
            if self.plan.caps is not None:
                raise
            self.say(f"no caps: {error.message}")
            self.caps = ()

    async def _narrowed(self, opened: RolloutJournal, count: int) -> bool:
        """Drop the λ that are clearly dominated, then ask the others up to `count` questions."""
        if gone := clearly_dominated(self.grid()):
            self.say(f"clearly dominated, no more questions: λ = {', '.join(f'{x:g}' for x in gone)}")
            self.lambdas = [x for x in self.lambdas if x not in gone]
        return await self._stage(opened, count)

    def _enough(self) -> bool:
        grid = self.grid()
        width = half_width(grid, frontier_lambdas(grid))
        self.say(
            f"{amount(self.asked, 'question')}: intervals of accuracy on the frontier are within"
            f" ±{100 * width:.1f} points"
        )
        if width <= self.plan.precision:
            self.stopped = f"intervals are within ±{100 * self.plan.precision:g} points"
        return bool(self.stopped)

    async def _stage(self, opened: RolloutJournal, count: int) -> bool:
        """Ask the λ in play the first `count` questions; returns False if that would cost too many tokens."""
        work = self._work(opened, self.dataset.questions[:count])
        expected, spent = self._cost(work), self.spent
        if self.plan.max_tokens is not None and spent + expected > self.plan.max_tokens:
            self.stopped = f"{spent:,.0f} tokens so far, and the next step needs about {expected:,.0f} more"
            return False
        if work:
            await require_caps(self.router, self.settings, work)
            self.say(self._announcement(work, count, expected))
            await self._collect(opened, work, spent)
        self.asked = count
        return True

    async def _collect(
        self, opened: RolloutJournal, work: list[tuple[RolloutTarget, Question, int]], spent: float
    ) -> None:
        collector = Collector(
            self.router, self.settings, self.grader, concurrency=self.concurrency, patience=self.patience
        )
        progress = Progress(len(work), collector.outcome, self.say)
        begun = time.monotonic()
        outcome = await collector.run([work], opened, progress)
        if outcome.left:
            why = "; ".join(f"{count:,} × {reason}" for reason, count in outcome.failures.most_common(3))
            raise FailureError(
                f"{amount(outcome.left, 'answer is', 'answers are')} missing: {why}", hint="run the same command again"
            )
        self._rates.append((self.spent - spent) / max(time.monotonic() - begun, 1e-3))

    def _targets(self) -> list[RolloutTarget]:
        found = targets(self.router, (), self.lambdas)
        return with_caps(found, self.caps) if self.caps else found

    def _work(self, opened: RolloutJournal, questions: Sequence[Question]) -> list[tuple[RolloutTarget, Question, int]]:
        """Return the missing answers, one λ after the other: a live server is fastest at one λ."""
        return [
            (target, question, 0)
            for target in self._targets()
            for question in questions
            if (question.id, target.lambda_, target.cap, 0) not in opened.done
        ]

    def _cost(self, work: Sequence[tuple[RolloutTarget, Question, int]]) -> float:
        """Return the tokens that answers will take, by the mean of the nearest λ so far; 0 before the first answer."""
        sums: dict[float, list[float]] = {}
        for row in rollouts_of(self.answers):
            if row.cap is None:
                sums.setdefault(row.lambda_, []).append(row.tokens)
        means = {x: sum(tokens) / len(tokens) for x, tokens in sums.items()}
        if not means:
            return 0.0
        return sum(means[min(means, key=lambda x: (abs(x - target.lambda_), x))] for target, _, _ in work)

    def _announcement(self, work: Sequence[tuple[RolloutTarget, Question, int]], count: int, expected: float) -> str:
        lambdas = ", ".join(f"{x:g}" for x in self.lambdas)
        text = f"{amount(len(work), 'answer')}: {amount(count, 'question')} at λ = {lambdas}"
        if expected:
            text += f"; about {expected:,.0f} tokens"
        if expected and self._rates:
            text += f", {_duration(expected / max(self._rates[-1], 1e-9))}"
        return text


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
