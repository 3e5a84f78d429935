"""The engine's thread, and jobs: the generations of one request, with their events on an event loop.

An engine is used from one thread. Orders (begin a job, end it) reach that thread through a queue and are carried
out between two steps; the events of a step return to the loop in one call.
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
"""The index of one of a job's generations, and its event."""


class Job:
    """The running generations of one request. Read it to its end, or `cancel` it."""

    def __init__(self, thread: EngineThread, generations: Sequence[Generation]) -> None:
        self.generations = tuple(generations)
        self.loop = asyncio.get_running_loop()
        self.rows: list[Row] = []
        self._thread = thread
        self._told: asyncio.Queue[list[Told] | DamiError] = asyncio.Queue()
        self._open = len(self.generations)

    async def next(self) -> list[Told]:
        """Wait for the next events; an empty list once all have ended. Raises the error that stopped the job."""
        if not self._open:
            return []
        told = await self._told.get()
        if isinstance(told, DamiError):
            self._open = 0
            raise told
        self._open -= sum(event.finish_reason is not None for _, event in told)
        return told

    async def completions(self) -> list[Completion]:
        """Wait for all answers, in the order of the generations."""
        builders = [CompletionBuilder() for _ in self.generations]
        while told := await self.next():
            for index, event in told:
                builders[index].events.append(event)
        return [builder.finished() for builder in builders]

    def cancel(self) -> None:
        """Free the rows that are still live; safe to repeat."""
        if self._open:
            self._open = 0
            self._thread.end(self)

    def tell(self, told: list[Told] | DamiError) -> None:
        """Receive events or an error; called on the loop."""
        self._told.put_nowait(told)


class EngineThread:
    """Runs an engine in its own thread, from `start` to `stop`. Call `submit` from an event loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._owners: dict[int, tuple[Job, int]] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="dami-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current step; unfinished work is dropped."""
        if self._thread is not None:
            self._orders.put(self._stop)
            self._thread.join()
            self._thread = None

    def submit(self, generations: Sequence[Generation]) -> Job:
        """Start a job for these generations."""
        job = Job(self, generations)
        self._orders.put(partial(self._begin, job))
        return job

    def end(self, job: Job) -> None:
        """Drop the unfinished rows of a job."""
        self._orders.put(partial(self._end, job))

    def _run(self) -> None:
        while not self._stopping:
            self._obey()
            if self.engine.busy and not self._stopping:
                self._step()

    def _obey(self) -> None:
        """Carry out all waiting orders; wait for one if there is nothing else to do."""
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
            _LOG.exception("the engine failed to add a request")
            self._fail(job)

    def _end(self, job: Job) -> None:
        for row in job.rows:
            if self._owners.pop(row.id, None) is not None:
                self._remove(row)

    def _remove(self, row: Row) -> None:
        try:
            self.engine.remove(row)
        except Exception:
            _LOG.exception("the engine failed to remove a row")

    def _fail(self, job: Job) -> None:
        self._end(job)
        self._tell(job, FailureError("the engine failed during this request"))

    def _step(self) -> None:
        try:
            events = self.engine.step()
        except Exception:
            # The rows of this step cannot continue; later ones can.
            _LOG.exception("the engine failed; running requests are dropped")
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
        """Send events to the loop: one call for all jobs of a step, because each call wakes it."""
        # All jobs belong to the server's loop. If it is closed, nothing waits for them any more.
        if told:
            with suppress(RuntimeError):
                next(iter(told)).loop.call_soon_threadsafe(_tell_jobs, told)


def _tell_jobs(told: Mapping[Job, list[Told] | DamiError]) -> None:
    for job, news in told.items():
        job.tell(news)
