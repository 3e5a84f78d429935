"""Servers that hang: found early, skipped, and their waiting calls answered elsewhere; slow ones are left to work."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from fakes.upstream import Call, Script, Upstream, chat, hang, send
from fakes.waiting import until
from fakes.world import World

from dami_router.messages.request import read_request

QUICK = "probe: {interval: 0.2, timeout: 20}\ntimeouts: {connect: 20, first_byte: 0.4, idle: 120, total: 120}"


def slow(gate: threading.Event) -> Script:
    """Answer one token at once, and anything longer only when the gate opens."""

    async def script(call: Call, writer: asyncio.StreamWriter) -> None:
        while call.json.get("max_tokens") != 1 and not gate.is_set():
            await asyncio.sleep(0.01)
        await send(writer, 200, chat())

    return script


class Stopped(Upstream):
    """A server that answers nothing any more once it is `stopped`, health checks included, as after SIGSTOP."""

    def __init__(self, script: Script | None = None) -> None:
        super().__init__(script, models=None)
        self.stopped = False
        self.missed = 0

    async def get(self, call: Call, writer: asyncio.StreamWriter) -> None:
        if self.stopped or self.missed > 0:
            self.missed -= 1
            await asyncio.sleep(3600)
        await super().get(call, writer)


def real(server: Upstream) -> list[Call]:
    """The calls that are no question for one token."""
    return [call for call in server.calls if call.json.get("max_tokens") != 1]


def test_a_whole_reply_of_a_hanging_server_comes_from_another_long_before_the_total_limit(world: World) -> None:
    """A server that is healthy but answers no completion loses its waiting call to the next variant."""
    low, high = world.pair(hang(), None)
    client = world.router(("v-l000", low), ("v-l100", high), extra=f"estimator: {{fixed: 0}}\n{QUICK}")
    answer = client.chat()
    assert (answer.status, answer.variant) == (200, "v-l100")
    assert len(real(low)) == 1
    health = client.get("/health").json
    assert health["variants"] == {"v-l000": False, "v-l100": True}
    assert client.metric('dami_upstream_failures_total{reason="given_up",variant="v-l000"}') == 1


def test_all_calls_that_wait_for_a_hanging_server_are_given_up_at_once(world: World) -> None:
    """The first question that stays unanswered frees every call on that server, and later ones go elsewhere."""
    low, high = world.pair(hang(), None)
    client = world.router(("v-l000", low), ("v-l100", high), extra=f"estimator: {{fixed: 0}}\n{QUICK}")
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(client.chat())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [(a.status, a.variant) for a in found] == [(200, "v-l100")] * 8
    before = len(real(low))
    assert client.chat().variant == "v-l100"
    assert len(real(low)) == before <= 8


def test_a_long_answer_of_a_working_server_is_generated_once(world: World) -> None:
    """While a whole reply is awaited, a server that answers one token keeps its call, and nothing is asked twice."""
    gate = threading.Event()
    low, high = world.pair(slow(gate), None)
    client = world.router(("v-l000", low), ("v-l100", high), extra=f"estimator: {{fixed: 0}}\n{QUICK}")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(client.chat()))
    thread.start()
    until(lambda: len(low.calls) - len(real(low)) >= 3)
    gate.set()
    thread.join(120)
    assert (found[0].status, found[0].variant) == (200, "v-l000")
    assert (len(real(low)), len(real(high))) == (1, 0)


def test_a_server_that_works_again_is_used_again(world: World) -> None:
    """A hanging server is asked for one token until it gives one; then requests go to it as before."""
    low, high = world.pair(hang(), None)
    client = world.router(("v-l000", low), ("v-l100", high), extra=f"estimator: {{fixed: 0}}\n{QUICK}")
    assert client.chat().variant == "v-l100"
    gate = threading.Event()
    gate.set()
    low.script = slow(gate)
    until(lambda: client.app.router.fleet.replicas[0].health == "alive")
    assert client.chat().variant == "v-l000"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_what_waits_for_a_server_that_stops_is_sent_elsewhere(world: World, streamed: bool) -> None:
    """When health checks call a server dead, its calls before their first byte move on, streams and whole replies."""
    low, high = world.start(Stopped(hang())), world.upstream("v-l100")
    low.models = {"object": "list", "data": [{"id": "v-l000", "object": "model"}]}
    extra = "estimator: {fixed: 0}\nprobe: {interval: 0.2, timeout: 0.3}"
    client = world.router(("v-l000", low), ("v-l100", high), extra=extra)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(client.chat(stream=streamed)))
    thread.start()
    until(lambda: len(low.calls) > 0)
    low.stopped = True
    thread.join(120)
    assert (found[0].status, found[0].variant) == (200, "v-l100")


def test_a_busy_server_that_misses_one_health_check_is_not_dead(world: World) -> None:
    """One probe without an answer in time changes nothing; the next one, sent at once, decides."""
    low = world.start(Stopped())
    low.models = {"object": "list", "data": [{"id": "v-l000", "object": "model"}]}
    client = world.router(("v-l000", low), extra="probe: {interval: 600, timeout: 0.3}")
    replica = client.app.router.fleet.replicas[0]
    low.missed = 1
    world.loop.run(client.app.router.prober.probe(replica))
    assert replica.health == "alive"
    low.stopped = True
    world.loop.run(client.app.router.prober.probe(replica))
    assert replica.health == "dead"


def test_a_client_that_leaves_a_given_up_call_is_no_failure(world: World) -> None:
    """Where the client goes at the same moment, the call ends as for any client that left."""
    router = world.router(("v-l000", world.upstream("v-l000", hang()))).app.router
    replica = router.fleet.replicas[0]

    async def ask() -> None:
        request = read_request("/v1/chat/completions", "openai", b'{"model":"dami","messages":[]}')
        await router.send(request, await router.decide(request))

    async def both() -> str:
        task = asyncio.create_task(ask())
        while not replica.waiting:
            await asyncio.sleep(0.005)
        replica.give_up()
        task.cancel()
        await asyncio.wait([task])
        return "cancelled" if task.cancelled() else "not cancelled"

    assert world.loop.run(both()) == "cancelled"
    assert (replica.waiting, replica.given_up, replica.outstanding) == ({}, set(), 0)
