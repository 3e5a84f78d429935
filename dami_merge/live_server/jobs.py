"""The engine's thread, and jobs: what one request asks of the engine, answered on an event loop.

An engine belongs to one thread. Orders (begin a job, end it) go to that thread through a queue and are
carried out between two steps; the events of a step come back to the loop in one call.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from dami_merge.live import Completion, Engine, Event, Generation, Row
from dami_merge.live.generation import CompletionBuilder
from dami_router.errors import DamiError, FailureError

__all__ = ["EngineThread", "Job", "Told"]

_LOG = logging.getLogger(__name__)

Told = tuple[int, Event]
"""Which of a job's generations, and what happened to it."""


class Job:
    """Some generations under way. `cancel` it, or read it to its end."""

    def __init__(self, thread: EngineThread, generations: Sequence[Generation]) -> None:
        self.generations = tuple(generations)
        self.loop = asyncio.get_running_loop()
        self.rows: list[Row] = []
        self._thread = thread
        self._told: asyncio.Queue[list[Told] | DamiError] = asyncio.Queue()
        self._open = len(self.generations)

    async def next(self) -> list[Told]:
        """Wait for the next events; an empty list once all have ended. Raises what kept the job from going on."""
        if not self._open:
            return []
        told = await self._told.get()
        if isinstance(told, DamiError):
            self._open = 0
            raise told
        self._open -= sum(event.finish_reason is not None for _, event in told)
        return told

    async def completions(self) -> list[Completion]:
        """Wait for all answers, in the order asked."""
        builders = [CompletionBuilder() for _ in self.generations]
        while told := await self.next():
            for index, event in told:
                builders[index].events.append(event)
        return [builder.finished() for builder in builders]

    def cancel(self) -> None:
        """Free the rows that are still worked on; safe to repeat."""
        if self._open:
            self._open = 0
            self._thread.end(self)

    def tell(self, told: list[Told] | DamiError) -> None:
        """Take news; called on the loop."""
        self._told.put_nowait(told)


class EngineThread:
    """Runs an engine in a thread of its own, from `start` to `stop`. `submit` from an event loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._owners: dict[int, tuple[Job, int]] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False

    @property
    def alive(self) -> bool:
        """Whether work is done."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="dami-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the step that is under way; what is left is dropped."""
        if self._thread is not None:
            self._orders.put(self._stop)
            self._thread.join()
            self._thread = None

    def submit(self, generations: Sequence[Generation]) -> Job:
        """Give the engine work."""
        job = Job(self, generations)
        self._orders.put(partial(self._begin, job))
        return job

    def end(self, job: Job) -> None:
        """Drop what is left of a job."""
        self._orders.put(partial(self._end, job))

    def _run(self) -> None:
        while not self._stopping:
            self._obey()
            if self.engine.busy and not self._stopping:
                self._step()

    def _obey(self) -> None:
        """Carry out all orders there are; wait for one where there is nothing else to do."""
        while not self._stopping:
            try:
                order = self._orders.get(block=not self.engine.busy)
            except queue.Empty:
                return
            order()

    def _stop(self) -> None:
        self._stopping = True

    def _begin(self, job: Job) -> None:
        try:
            for index, generation in enumerate(job.generations):
                row = self.engine.add(generation)
                job.rows.append(row)
                self._owners[row.id] = (job, index)
        except DamiError as error:
            self._end(job)
            self._tell(job, error)
        except Exception:
            _LOG.exception("the engine does not take a request")
            self._fail(job)

    def _end(self, job: Job) -> None:
        for row in job.rows:
            if self._owners.pop(row.id, None) is not None:
                self._remove(row)

    def _remove(self, row: Row) -> None:
        try:
            self.engine.remove(row)
        except Exception:
            _LOG.exception("the engine does not let go of a row")

    def _fail(self, job: Job) -> None:
        self._end(job)
        self._tell(job, FailureError("the engine failed in the middle of this request"))

    def _step(self) -> None:
        try:
            events = self.engine.step()
        except Exception:
            # Whatever broke, the rows of this step cannot go on; those that come later can.
            _LOG.exception("the engine failed; the requests under way are given up")
            for job in {job for job, _ in self._owners.values()}:
                self._fail(job)
            return
        told: dict[Job, list[Told] | DamiError] = {}
        for event in events:
            job, index = self._owners[event.row.id]
            if event.finish_reason is not None:
                del self._owners[event.row.id]
            news = told.setdefault(job, [])
            assert isinstance(news, list)
            news.append((index, event))
        self._tell_all(told)

    def _tell(self, job: Job, news: list[Told] | DamiError) -> None:
        self._tell_all({job: news})

    def _tell_all(self, told: Mapping[Job, list[Told] | DamiError]) -> None:
        """Bring news to the loop: one call for all jobs of a step, since each wakes it."""
        # Every job is of the loop that the server runs in; one that has been closed has nobody left who waits.
        if told:
            with suppress(RuntimeError):
                next(iter(told)).loop.call_soon_threadsafe(_tell_jobs, told)


def _tell_jobs(told: Mapping[Job, list[Told] | DamiError]) -> None:
    for job, news in told.items():
        job.tell(news)
