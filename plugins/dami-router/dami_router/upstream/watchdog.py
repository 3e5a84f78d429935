"""Servers that answer health checks but no completions: found by a completion of one token, and skipped.

A stream shows within `first_byte` seconds that its server works. A whole reply is one long silence, so nothing tells a
long answer from a server that hangs. While such a reply is awaited, the watchdog asks the same replica for one token: a
server that works answers it, however long the other answer takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic
from typing import Any

from dami_router.config.router_schema import ProbeSpec
from dami_router.upstream.fleet import Fleet, Replica
from dami_router.upstream.live_bodies import data_at
from dami_router.upstream.reply import CallError, Calls

__all__ = ["Watchdog"]

_LOG = logging.getLogger(__name__)


class Watchdog:
    """Asks replicas whose whole replies are overdue for one token, at most one request a replica at a time.

    A reply is overdue after `probe.interval` seconds. A replica that gives no token within `patience` seconds is hung:
    its waiting calls are given up before their first byte, and it comes last until it gives a token again.
    """

    def __init__(self, fleet: Fleet, transport: Calls, probe: ProbeSpec, patience: float) -> None:
        self._fleet, self._transport = fleet, transport
        self._interval, self._patience = probe.interval, patience
        self._asked: dict[Replica, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch in the background."""
        self._task = asyncio.create_task(self._watch(), name="dami-watchdog")

    async def stop(self) -> None:
        """Stop watching."""
        tasks = [*self._asked.values(), *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._interval / 2)
            now = monotonic()
            for replica in self._fleet.replicas:
                doubtful = replica.hung or replica.overdue(now, self._interval)
                if doubtful and replica not in self._asked and (replica.hung or replica.health != "dead"):
                    task = asyncio.create_task(self.ask(replica), name="dami-one-token")
                    self._asked[replica] = task
                    task.add_done_callback(lambda _, replica=replica: self._asked.pop(replica, None))  # type: ignore[misc]

    async def ask(self, replica: Replica) -> None:
        """Ask for one token; any reply shows that completions are answered."""
        path, body = _one_token(replica)
        asked = monotonic()
        try:
            await self._transport.post(replica, path, body, self._patience)
        except CallError as error:
            if replica.heard > asked:
                return  # others were answered meanwhile: the question waits in a queue that moves
            if not replica.hung:
                _LOG.warning("%s at %s: hangs: %s", replica.variant.id, replica.spec.url, error.words)
            replica.hang("it answers no completion, not even of one token")
        else:
            if replica.hung:
                _LOG.info("%s at %s: answers completions again", replica.variant.id, replica.spec.url)
            replica.recover()


def _one_token(replica: Replica) -> tuple[str, Mapping[str, Any]]:
    if replica.spec.protocol == "tgi":
        return "/generate", {"inputs": "1", "parameters": {"max_new_tokens": 1, "do_sample": False}}
    body = {"model": replica.served_as(0.0), "prompt": "1", "max_tokens": 1, "temperature": 0}
    return "/v1/completions", data_at(body, replica, 0.0)
