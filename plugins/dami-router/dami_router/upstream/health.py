"""Health checks: is each server alive, and does it serve the variant that the configuration names?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dami_router.backends.backend import Identity, ProbeError, Reader, WrongIdentityError
from dami_router.backends.live_protocol import LiveReader
from dami_router.backends.openai_protocol import OpenAIReader
from dami_router.backends.tgi_protocol import TgiReader
from dami_router.config.router_schema import ProbeSpec
from dami_router.upstream.fleet import Fleet, Replica
from dami_router.upstream.reply import CallError, Calls

__all__ = ["Prober"]

_LOG = logging.getLogger(__name__)
_READERS: Mapping[str, Reader] = {"tgi": TgiReader(), "openai": OpenAIReader(), "live": LiveReader()}


_REFRESH_S = 60.0
"""Seconds between two checks of what a server can do, for replicas whose abilities matter."""


class Prober:
    """Probes all replicas once at `start`, then every `interval` seconds, until `stop`.

    The replicas in `explored` are asked once a minute what they can do: a server may come back with other flags.
    """

    def __init__(self, fleet: Fleet, transport: Calls, spec: ProbeSpec) -> None:
        self._fleet, self._transport, self._spec = fleet, transport, spec
        self.explored: set[Replica] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Probe all replicas once, then continue in the background."""
        await self.probe_all()
        self._tasks = [
            asyncio.create_task(self._watch(), name="dami-probe"),
            asyncio.create_task(self._refresh(), name="dami-explore"),
        ]

    async def stop(self) -> None:
        """Stop probing."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._spec.interval)
            await self.probe_all()

    async def _refresh(self) -> None:
        while True:
            await asyncio.gather(*map(self.explore, self.explored), return_exceptions=True)
            await asyncio.sleep(max(_REFRESH_S, self._spec.interval))

    async def probe_all(self) -> None:
        """Probe all replicas at the same time."""
        await asyncio.gather(*(self.probe(replica) for replica in self._fleet.replicas))

    async def probe(self, replica: Replica) -> None:
        """Probe one replica and set its health; never raises.

        A server that misses one probe in time may only be busy: it is dead when it misses the next one, too.
        """
        try:
            try:
                identity = await self._identify(replica)
            except CallError as error:
                if error.why not in ("timeout", "connect_timeout") or replica.health != "alive":
                    raise
                replica.missed += 1
                identity = await self._identify(replica)
        except WrongIdentityError as error:
            self._note(replica, "wrong", str(error))
        except ProbeError as error:
            self._note(replica, "dead", str(error))
        except CallError as error:
            self._note(replica, "dead", error.words)
        except Exception as error:
            # No server, however broken, may stop the probing.
            self._note(replica, "dead", type(error).__name__)
        else:
            known = replica.identity
            # A server that restarted may have other flags.
            if known is not None and known.model == identity.model and replica.health == "alive":
                able = identity.capabilities or known.capabilities
                identity = Identity(identity.model, identity.revision, able, identity.info)
            replica.identity = identity
            if replica.hung:
                return  # it passes health checks, and answers no completion: the watchdog decides
            if replica.health == "dead" and replica.breaker.state != "closed":
                replica.breaker.succeeded()
            self._note(replica, "alive", "")

    async def _identify(self, replica: Replica) -> Identity:
        async def get(path: str) -> tuple[int, Any]:
            return await self._transport.get(replica, path, self._spec.timeout)

        reader = _READERS[replica.spec.protocol]
        return await reader.identify(replica.spec, replica.variant, get)

    async def explore(self, replica: Replica) -> None:
        """Find out what an alive replica can do, with one-token requests, and keep it in its identity."""

        async def post(path: str, data: Mapping[str, Any]) -> tuple[int, Any]:
            return await self._transport.post(replica, path, data, max(self._spec.timeout, 30.0))

        identity = replica.identity
        if replica.health != "alive" or identity is None:
            return
        # As in `probe`: no server may stop the probing.
        with suppress(Exception):
            found = await _READERS[replica.spec.protocol].explore(identity, post)
            replica.identity = Identity(identity.model, identity.revision, found, identity.info)

    def _note(self, replica: Replica, health: str, trouble: str) -> None:
        if replica.health != health:
            level = logging.INFO if health == "alive" else logging.ERROR if health == "wrong" else logging.WARNING
            found = f"{health}: {trouble}" if trouble else health
            _LOG.log(level, "%s at %s: %s", replica.variant.id, replica.spec.url, found)
        replica.missed = replica.missed + 1 if health == "dead" else 0
        replica.health, replica.trouble = health, trouble  # type: ignore[assignment]
        if replica.missed == 2:
            replica.give_up(movable=True)
