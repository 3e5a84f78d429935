"""The run: collect the missing answers, one lane per variant, and grade and write each as it arrives."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dami_router.collecting.asking import RolloutTarget, UnusableError, VariantAnswer, ask
from dami_router.collecting.rollout_journal import Key, RolloutJournal
from dami_router.collecting.settings import QuestionSettings
from dami_router.datasets import Question
from dami_router.grading import Grader
from dami_router.router import Router
from dami_router.shared.tasks import all_of

__all__ = ["Collector", "Outcome"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


@dataclass
class Outcome:
    """The outcome of a run: rollouts written, failures by reason, and answers not tried for lack of a server."""

    written: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    skipped: int = 0

    @property
    def left(self) -> int:
        """The number of rollouts still missing."""
        return self.failures.total() + self.skipped


@dataclass
class _Lane:
    """The work of one server, or of one variant's replicas; `answered` counts its answers."""

    work: list[tuple[RolloutTarget, Question, int]]
    answered: int = 0
    lost: bool = False


class Collector:
    """Collects rollouts. `patience`: seconds during which a failing request is retried before it is given up."""

    def __init__(
        self, router: Router, settings: QuestionSettings, grader: Grader | None, *, concurrency: int, patience: float
    ) -> None:
        self._router, self._settings, self._grader = router, settings, grader
        self._concurrency, self._patience = concurrency, patience
        self.outcome = Outcome()
        self._rows: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def run(
        self,
        lanes: Sequence[Sequence[tuple[RolloutTarget, Question, int]]],
        into: RolloutJournal,
        on_progress: Callable[[], None],
    ) -> Outcome:
        """Work through the lanes, each with `concurrency` requests in flight; if cancelled, keep the answers so far."""
        writer = asyncio.create_task(self._write(into, on_progress))
        work = asyncio.create_task(self._lanes(lanes))
        try:
            # If the writer fails (a full disk), the run must end; its answers would be lost.
            await asyncio.wait([work, writer], return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()
            await work
        finally:
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
            self._rows.put_nowait(None)
            await writer
        return self.outcome

    async def _lanes(self, lanes: Sequence[Sequence[tuple[RolloutTarget, Question, int]]]) -> None:
        filled = [_Lane(list(reversed(items))) for items in lanes]
        await all_of(self._work(lane) for lane in filled for _ in range(min(self._concurrency, len(lane.work))))

    async def _work(self, lane: _Lane) -> None:
        while lane.work and not lane.lost:
            target, question, sample = lane.work.pop()
            before = lane.answered
            try:
                asked = await self._patiently(target, question, sample)
            except UnusableError as error:
                self.outcome.failures[f"λ={target.lambda_:g}: {error.why}"] += 1
                # No other request succeeded in that time: the server is at fault, not the query.
                if not error.final and lane.answered == before and not lane.lost:
                    lane.lost = True
                    self.outcome.skipped += len(lane.work)
                continue
            lane.answered += 1
            self._rows.put_nowait(await self._graded(target, question, sample, asked))

    async def _patiently(self, target: RolloutTarget, question: Question, sample: int) -> VariantAnswer:
        body = self._settings.request(target.model, question, sample, target.cap)
        now = asyncio.get_running_loop().time
        end, pause = 0.0, _FIRST_PAUSE
        while True:
            try:
                return await ask(self._router, target, body)
            except UnusableError as error:
                end = end or now() + self._patience
                wait = max(random.uniform(pause / 2, pause), error.retry_after)  # noqa: S311
                if error.final or now() + wait > end:
                    raise
                await asyncio.sleep(wait)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _graded(
        self, target: RolloutTarget, question: Question, sample: int, given: VariantAnswer
    ) -> dict[str, Any]:
        row: dict[str, Any] = {"query_id": question.id, "query": question.text, "lambda": target.lambda_}
        if self._grader is not None:
            score = await asyncio.to_thread(self._grader.grade, given.answer, question.expected or "")
            row["correct"] = bool(score) if score in (0.0, 1.0) else score
        row |= {"tokens": given.tokens, "sample": sample, "model": target.model}
        row["answer"] = given.text if self._settings.keep_thoughts else given.answer
        optional = {"expected": question.expected, "finish_reason": given.finish_reason, "system": question.system,
                    "cap": target.cap}  # fmt: skip
        row |= {key: value for key, value in optional.items() if value is not None}
        return row | {"think": given.think, "latency_s": round(given.latency_s, 6)}

    async def _write(self, into: RolloutJournal, on_progress: Callable[[], None]) -> None:
        """Write rows as they arrive, all pending ones at once; None ends it."""
        going = True
        while going:
            rows = [await self._rows.get()]
            while not self._rows.empty():
                rows.append(self._rows.get_nowait())
            going = None not in rows
            known = [row for row in rows if row is not None]
            if known:
                await asyncio.to_thread(into.append, known)
                into.done.update(key_of(row) for row in known)
                self.outcome.written += len(known)
                on_progress()


def key_of(row: dict[str, Any]) -> Key:
    """Return a row's key."""
    return row["query_id"], row["lambda"], row.get("cap"), row["sample"]
