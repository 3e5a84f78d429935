"""Servers that hang: found early, skipped, and their waiting calls answered elsewhere; slow ones are left to work."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from fakes.upstream import Call, Script, Upstream, chat, hang, send
from fakes.waiting import until
from fakes.world import Client, World

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
        self.health = 200

    async def get(self, call: Call, writer: asyncio.StreamWriter) -> None:
        if self.stopped or self.missed > 0:
            self.missed -= 1
            await asyncio.sleep(3600)
        if self.health != 200:
            await send(writer, self.health, {})
        else:
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
    assert (replica.waiting, replica.outstanding) == (set(), 0)


def waiting(world: World, *names: str) -> tuple[Client, Stopped, threading.Event, list[Any], threading.Thread]:
    """A call that waits for the first of these variants, and what it gets once the event is set."""
    gate = threading.Event()
    low = world.start(Stopped(slow(gate)))
    low.models = {"object": "list", "data": [{"id": "v-l000", "object": "model"}]}
    others = [(name, world.upstream(name)) for name in names]
    extra = "estimator: {fixed: 0}\nprobe: {interval: 600, timeout: 0.3}"
    client = world.router(("v-l000", low), *others, extra=extra)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(client.chat()))
    thread.start()
    until(lambda: len(client.app.router.fleet.replicas[0].waiting) == 1)
    return client, low, gate, found, thread


def test_a_call_that_no_other_server_can_take_waits_for_a_server_that_paused(world: World) -> None:
    """Where nothing else has the variant, a server that misses health checks and then goes on loses no call."""
    client, low, gate, found, thread = waiting(world)
    low.stopped = True
    world.loop.run(client.app.router.prober.probe(client.app.router.fleet.replicas[0]))
    assert client.app.router.fleet.replicas[0].health == "dead"
    low.stopped = False
    gate.set()
    thread.join(120)
    assert found[0].status == 200
    assert len(real(low)) == 1


def test_one_failed_health_check_takes_no_call_away(world: World) -> None:
    """A single 503 keeps new requests away, and the call under way; the second one in a row sends it elsewhere."""
    client, low, gate, found, thread = waiting(world, "v-l100")
    router = client.app.router
    low.health = 503
    world.loop.run(router.prober.probe(router.fleet.replicas[0]))
    assert (router.fleet.replicas[0].health, len(router.fleet.replicas[0].waiting)) == ("dead", 1)
    world.loop.run(router.prober.probe(router.fleet.replicas[0]))
    thread.join(120)
    gate.set()
    assert (found[0].status, found[0].variant) == (200, "v-l100")


def test_a_server_whose_queue_moves_does_not_hang(world: World) -> None:
    """The question for one token waits behind other requests, which are answered meanwhile: nothing is sent twice."""
    gate = threading.Event()

    async def script(call: Call, writer: asyncio.StreamWriter) -> None:
        held = call.json.get("max_tokens") == 1 or "held" in call.json["messages"][0]["content"]
        while held and not gate.is_set():
            await asyncio.sleep(0.01)
        await send(writer, 200, chat())

    low, high = world.pair(script, None)
    client = world.router(("v-l000", low), ("v-l100", high), extra=f"estimator: {{fixed: 0}}\n{QUICK}")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(client.chat("held")))
    thread.start()

    def asked_three_times() -> bool:
        client.chat()
        return len([call for call in low.calls if call.json.get("max_tokens") == 1]) >= 3

    until(asked_three_times)
    gate.set()
    thread.join(120)
    assert (found[0].status, found[0].variant) == (200, "v-l000")
    assert not high.calls


def test_a_server_that_hung_and_came_back_with_another_model_is_not_used(world: World) -> None:
    """What the health check says of the model stays, whatever the watchdog finds."""
    replica = world.router(("v-l000", world.upstream("v-l000"))).app.router.fleet.replicas[0]

    async def changes() -> None:
        replica.hang("it answers nothing")
        replica.health = "wrong"
        replica.recover()

    world.loop.run(changes())
    assert (replica.health, replica.usable) == ("wrong", False)
