"""The proxy between clients and servers that fail in every way: what the client sees, and who is asked next."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes.upstream import Call, Script, Upstream, chunk, half, hang, noise, plain, stream, vanish
from fakes.waiting import happened, until
from fakes.world import Client, World, router_yml

BODY = json.dumps({"model": "dami", "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
TGI_ERROR = b'data:{"error":"Request failed during generation","error_type":"generation"}\n\n'
OPENAI_ERROR = b'data: {"error": {"message": "boom", "type": "server_error"}}\n\n'
FAULTS: dict[str, Script] = {
    "hang": hang(),
    "vanish": vanish(),
    "status 500": plain(500, {"error": "x"}),
    "status 503": plain(503, {"error": "x"}),
    "status 429": plain(429, {"error": "x"}),
    "status 424": plain(424, {"error": "x", "error_type": "generation"}),
    "wrong key": plain(401, {"error": "x"}),
    "status 529": plain(529, {"error": "x"}),
    "redirect": plain(302, b"", location="http://127.0.0.1:9/sign-in"),
    "web page": plain(200, b"<html>Down for maintenance</html>", content_type="text/html; charset=utf-8"),
    "half a body": half(),
    "half a body without a length": half(promised=None),
    "more headers than clients read": plain(200, {}, **{f"x_{i}": "y" for i in range(100)}),
    "no HTTP": noise(),
    "TGI error first": stream(TGI_ERROR),
    "OpenAI error first": stream(OPENAI_ERROR),
    "hang before the first event": stream(hang=True),
    "cut before the first event": stream(cut=True),
}


def raw(client: Client, body: bytes = BODY) -> socket.socket:
    """Send a streamed chat on a socket of its own."""
    connection = socket.create_connection(("127.0.0.1", client.port), timeout=60)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    connection.sendall(head + body)
    return connection


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_fault_before_the_first_byte_falls_back_to_the_nearest_variant(
    world: World, fault: str, streamed: bool
) -> None:
    """The client gets the neighbour's answer, and the headers and /metrics say so."""
    broken = world.upstream("v-l050", FAULTS[fault])
    near, far = world.upstream("v-l060"), world.upstream("v-l000")
    # The neighbour, which answers at once, has the same limits.
    limits = "timeouts: {connect: 20, first_byte: 1.5, total: 1.5}" if "hang" in fault else ""
    client = world.router(("v-l050", broken), ("v-l060", near), ("v-l000", far), extra=limits)
    answer = client.chat(stream=streamed)
    assert (answer.status, answer.variant) == (200, "v-l060")
    assert int(answer.headers["x-dami-attempts"]) >= 2
    assert client.metric('dami_fallbacks_total{answered="v-l060",chosen="v-l050"}') == 1
    assert far.calls == []


def test_a_refused_connection_falls_back(world: World) -> None:
    """A server that is gone since the last probe costs the client nothing."""
    low, high = world.pair()
    client = world.router(("v-l000", low), ("v-l100", high))
    world.loop.run(low.stop())
    assert client.chat(reasoning_effort="none").variant == "v-l100"
    assert client.metric('dami_upstream_failures_total{reason="refused",variant="v-l000"}') == 1


def balanced(world: World, first: Upstream, extra: str = "") -> Client:
    """A proxy over `first`, whose address stands for several servers, and a plain neighbour."""
    text = router_yml(("v-l050", first), ("v-l060", world.upstream("v-l060")), extra=extra)
    return world.proxy(
        text.replace(f'"{first.url}", protocol: openai', f'"{first.url}", protocol: openai, balanced: true')
    )


def once(fault: Script) -> Script:
    """Fail the first call as the server behind an address that died, and answer the others as its neighbours."""
    scripts = iter([fault])

    async def script(call: Call, writer: asyncio.StreamWriter) -> None:
        await next(scripts, plain())(call, writer)

    return script


@pytest.mark.parametrize("fault", ["status 500", "status 502", "status 503", "vanish"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_failed_call_is_tried_again_where_servers_share_an_address(world: World, fault: str, streamed: bool) -> None:
    """One of the servers behind a balanced address fails: another one answers at the same λ, with one call more."""
    script = plain(502, {"error": "x"}) if fault == "status 502" else FAULTS[fault]
    client = balanced(world, world.upstream("v-l050", once(script)))
    answer = client.chat(stream=streamed)
    assert (answer.status, answer.variant, answer.headers["x-dami-attempts"]) == (200, "v-l050", "2")


@pytest.mark.parametrize(
    "fault", ["status 503", "vanish", "status 503 and retry-after", "status 429", "status 504", "half a body", "hang"]
)
def test_a_balanced_address_is_asked_at_most_twice(world: World, fault: str) -> None:
    """Where all of them fail, the next variant answers; overload, a cut reply and a hang are not tried again there."""
    more = {
        "status 503 and retry-after": plain(503, {"error": "x"}, retry_after="1"),
        "status 504": plain(504, {"error": "x"}),
    }
    first = world.upstream("v-l050", {**FAULTS, **more}[fault])
    limits = "timeouts: {connect: 20, first_byte: 1.5, total: 1.5}" if fault == "hang" else ""
    answer = balanced(world, first, limits).chat()
    assert (answer.status, answer.variant) == (200, "v-l060")
    assert len(first.calls) == (2 if fault in ("status 503", "vanish") else 1)


@pytest.mark.parametrize(("extra", "asked"), [("breaker: {failures: 1}", 1), ("breaker: {failures: 2}", 2)])
def test_an_open_breaker_ends_the_tries_at_a_balanced_address(world: World, extra: str, asked: int) -> None:
    """Both calls count against the address, and none is sent past its open breaker."""
    first = world.upstream("v-l050", FAULTS["status 503"])
    client = balanced(world, first, extra)
    assert client.chat().variant == client.chat().variant == "v-l060"
    assert len(first.calls) == asked


def test_a_balanced_address_keeps_within_the_attempts(world: World) -> None:
    """With one attempt there is no second one."""
    first = world.upstream("v-l050", FAULTS["status 503"])
    text = router_yml(("v-l050", first)).replace("protocol: openai", "protocol: openai, balanced: true")
    client = world.proxy(text.replace("backoff: 0.001", "backoff: 0.001, attempts: 1"))
    assert client.chat().status == 502
    assert len(first.calls) == 1


@pytest.mark.parametrize("fault", ["status 500", "status 503", "refused"])
def test_a_plain_server_that_fails_is_left_at_once(world: World, fault: str) -> None:
    """Without `balanced` the next variant is asked after one call, and so it is where nothing listens."""
    first = world.upstream("v-l050", FAULTS.get(fault))
    client = world.router(("v-l050", first), ("v-l060", world.upstream("v-l060")))
    if fault == "refused":
        world.loop.run(first.stop())
    answer = client.chat()
    assert (answer.variant, answer.headers["x-dami-attempts"]) == ("v-l060", "2")


@pytest.mark.parametrize(
    ("fault", "says"),
    [("vanish", "closed"), ("half a body", "broke off"), ("hang", "timed out"), ("status 500", "status_500")],
)
def test_where_nobody_answers_the_client_gets_502_with_a_reason(world: World, fault: str, says: str) -> None:
    """All servers failing is 502 in OpenAI's form; it names the variants and what happened, and nothing hangs."""
    servers = world.pair(FAULTS[fault], FAULTS[fault])
    limits = "timeouts: {connect: 20, first_byte: 0.2, total: 0.2}" if fault == "hang" else ""
    client = world.router(("v-l000", servers[0]), ("v-l100", servers[1]), extra=limits)
    answer = client.chat()
    assert (answer.status, answer.json["error"]["type"]) == (502, "server_error")
    assert says in answer.json["error"]["message"]
    assert "v-l000, v-l100" in answer.json["error"]["message"]


def test_servers_that_are_all_busy_are_429_with_their_retry_after(world: World) -> None:
    """429 is passed on once nobody else is left, with Retry-After, and opens no breaker."""
    busy = plain(429, {"error": "x"}, retry_after="7")
    low, high = world.pair(busy, busy)
    client = world.router(("v-l000", low), ("v-l100", high), extra="breaker: {failures: 1}")
    answer = client.chat()
    assert (answer.status, answer.headers["retry-after"], answer.json["error"]["type"]) == (
        429,
        "7",
        "rate_limit_error",
    )
    assert client.metric(f'dami_breaker{{url="{low.url}",variant="v-l000"}}') == 0


def test_a_pinned_variant_is_not_replaced_by_another(world: World) -> None:
    """Whoever asks for one variant by its id gets that one or an error."""
    low, high = world.pair(plain(500, {}))
    client = world.router(("v-l000", low), ("v-l100", high))
    assert client.chat(model="v-l000").status == 502
    assert high.calls == []


def received(connection: socket.socket, wanted: bytes) -> bool:
    """Read until a text has arrived, whatever pieces it comes in."""
    data = b""
    while wanted not in data:
        if not (piece := connection.recv(4096)):
            return False
        data += piece
    return True


@pytest.mark.parametrize("way", ["before the reply", "before the first chunk", "in mid-stream"])
def test_a_client_that_leaves_cancels_the_call(world: World, way: str) -> None:
    """Ten of ten: the server's work ends when the client goes, at whatever moment."""
    script = {
        "before the reply": hang(),
        "before the first chunk": stream(hang=True),
        "in mid-stream": stream(chunk("1"), hang=True),
    }[way]
    server = world.upstream("v-l000", script)
    client = world.router(("v-l000", server), extra="timeouts: {connect: 20, first_byte: 600, idle: 600}")
    connections = [raw(client) for _ in range(10)]
    until(lambda: server.active == 10)
    if way == "in mid-stream":
        assert all(received(connection, b"data:") for connection in connections)
    for connection in connections:
        connection.close()
    until(lambda: server.cancelled == 10)
    until(lambda: client.app.admission.inside == 0)
    until(lambda: client.metric("dami_clients_gone_total") == 10)


def test_500_cancelled_requests_leave_nothing_behind(world: World) -> None:
    """All 500 calls end, nothing stays taken, and the next request is answered."""
    server = world.upstream("v-l000", hang())
    client = world.router(
        ("v-l000", server), extra="timeouts: {connect: 60, first_byte: 600}\nlimits: {concurrency: 500}"
    )
    connections = [raw(client) for _ in range(500)]
    until(lambda: server.active == 500)
    for connection in connections:
        connection.close()
    until(lambda: server.active == 0)
    server.script = plain()
    assert client.chat().status == 200
    until(lambda: client.app.router.fleet.replicas[0].outstanding == 0)


def test_idle_connections_that_the_server_closed_cost_no_request(world: World) -> None:
    """A hundred of a hundred: a stale keep-alive connection is tried once more on a fresh one."""
    server = world.upstream("v-l000")
    client = world.router(("v-l000", server))
    statuses = []
    for _ in range(100):
        statuses.append(client.chat().status)
        world.loop.run(server.drop_connections())
    assert statuses == [200] * 100


def test_a_connection_closed_just_as_it_is_used_is_tried_again(world: World) -> None:
    """A server that closes without a byte on every reused connection loses nothing: the second try is a fresh one."""
    seen = []

    async def script(call: Call, writer: object) -> None:
        seen.append(call)
        await (vanish() if len(seen) % 2 else plain())(call, writer)  # type: ignore[arg-type]

    server = world.upstream("v-l000", script)
    client = world.router(("v-l000", server))
    answers = [client.chat() for _ in range(5)]
    assert [(a.status, a.headers["x-dami-attempts"]) for a in answers] == [(200, "2")] * 5


@pytest.mark.parametrize("partial", [b"", b'data: {"choices": [{"del'])
def test_a_server_that_dies_in_mid_stream_ends_in_an_error_event(world: World, partial: bytes) -> None:
    """The client reads whole events, then an error event, and the stream ends well; nobody else is asked."""
    pieces = (chunk("1"), *([partial] if partial else []))
    low, high = world.pair(stream(*pieces, cut=True), stream(*pieces, cut=True))
    client = world.router(("v-l000", low), ("v-l100", high))
    answer = client.chat(stream=True)
    events = [json.loads(line[6:]) for line in answer.body.decode().split("\n\n") if line]
    assert answer.status == 200
    assert events[0]["choices"][0]["delta"]["content"] == "1"
    assert "broke off" in events[1]["error"]["message"]
    assert len(events) == 2
    assert len(low.calls) + len(high.calls) == 1
    assert (
        client.metric('dami_broken_replies_total{variant="v-l000"}')
        + client.metric('dami_broken_replies_total{variant="v-l100"}')
        == 1
    )


def test_a_stream_that_stalls_ends_in_an_error_event(world: World) -> None:
    """Silence beyond the idle limit is treated as a death, and the server's call is closed."""
    server = world.upstream("v-l000", stream(chunk("1"), hang=True))
    client = world.router(("v-l000", server), extra="timeouts: {connect: 20, idle: 0.5}")
    begun = time.perf_counter()
    body = client.chat(stream=True).body
    assert b"stalled" in body
    assert time.perf_counter() - begun > 0.4
    until(lambda: server.active == 0)


def test_a_slow_drip_is_ended_by_the_total_limit(world: World) -> None:
    """A server that sends a byte now and then never runs into the idle limit, but into the total one."""
    server = world.upstream("v-l000", stream(chunk("1"), *[b": drip\n\n"] * 100, delay=0.05))
    client = world.router(("v-l000", server), extra="timeouts: {connect: 20, idle: 30, total: 0.6}")
    body = client.chat(stream=True).body
    assert body.count(b": drip") < 100
    assert b'"error"' in body


def test_an_error_after_the_first_event_is_passed_on(world: World) -> None:
    """Once the client has read something, the server's own error event reaches it as it is."""
    low, high = world.pair(stream(chunk("1"), TGI_ERROR), stream(chunk("1"), TGI_ERROR))
    client = world.router(("v-l000", low), ("v-l100", high))
    assert client.chat(stream=True).body == chunk("1") + TGI_ERROR
    assert len(low.calls) + len(high.calls) == 1


def test_garbage_in_a_whole_reply_is_passed_on_unchanged(world: World) -> None:
    """What a server says with status 200 is not judged, counted or mended."""
    server = world.upstream("v-l000", plain(data=b'{"choices": nonsense \xff'))
    answer = world.router(("v-l000", server), extra="thinking: split").chat()
    assert (answer.status, answer.body) == (200, b'{"choices": nonsense \xff')


def test_a_breaker_opens_after_failures_and_closes_after_a_good_trial(world: World) -> None:
    """A failing server is left alone, then tried once, and used again when it answers."""
    low, high = world.pair(plain(500, {}))
    client = world.router(("v-l000", low), ("v-l100", high), extra="breaker: {failures: 2, open_s: 30}")
    now = 0.0
    client.app.router.fleet.replicas[0].breaker.clock = lambda: now
    assert [client.chat(reasoning_effort="none").variant for _ in range(4)] == ["v-l100"] * 4
    assert len(low.calls) == 2
    assert client.metric(f'dami_breaker{{url="{low.url}",variant="v-l000"}}') == 2
    low.script = plain()
    now = 31.0
    assert [client.chat(reasoning_effort="none").variant for _ in range(2)] == ["v-l000"] * 2
    assert client.metric(f'dami_breaker{{url="{low.url}",variant="v-l000"}}') == 0


def test_streams_that_break_in_the_middle_open_the_breaker(world: World) -> None:
    """A server whose streams begin and break is left alone like one that refuses, although each had begun well."""
    low, high = world.pair(stream(chunk("1"), cut=True))
    client = world.router(("v-l000", low), ("v-l100", high), extra="breaker: {failures: 3, open_s: 600}")
    for _ in range(3):
        assert b"broke off" in client.chat(reasoning_effort="none", stream=True).body
    until(lambda: client.metric(f'dami_breaker{{url="{low.url}",variant="v-l000"}}') == 2)
    answer = client.chat(reasoning_effort="none", stream=True)
    assert (answer.variant, b"error" in answer.body, len(low.calls)) == ("v-l100", False, 3)


def test_a_whole_stream_in_between_starts_the_count_anew(world: World) -> None:
    """The failures that open a breaker are failures in a row."""
    low, high = world.pair()
    client = world.router(("v-l000", low), ("v-l100", high), extra="breaker: {failures: 2, open_s: 600}")
    for script in (stream(chunk("1"), cut=True), stream(chunk("1")), stream(chunk("1"), cut=True)):
        low.script = script
        assert client.chat(reasoning_effort="none", stream=True).variant == "v-l000"
        until(lambda: client.app.admission.inside == 0)
    assert client.metric(f'dami_breaker{{url="{low.url}",variant="v-l000"}}') == 0


def test_a_trial_whose_stream_breaks_opens_the_breaker_again(world: World) -> None:
    """The first event of a trial closes the breaker for others; where the stream breaks then, one failure is enough."""
    low, high = world.pair(plain(500, {}))
    client = world.router(("v-l000", low), ("v-l100", high), extra="breaker: {failures: 2, open_s: 30}")
    breaker, now = client.app.router.fleet.replicas[0].breaker, 0.0
    breaker.clock = lambda: now
    for _ in range(2):
        client.chat(reasoning_effort="none")
    now = 31.0
    low.script = stream(chunk("1"), cut=True)
    assert b"broke off" in client.chat(reasoning_effort="none", stream=True).body
    until(lambda: breaker.state == "open")


def test_all_breakers_open_is_503_at_once(world: World) -> None:
    """Where nobody may be asked, the client is told to come back, without a wait."""
    server = world.upstream("v-l000", plain(500, {}))
    client = world.router(("v-l000", server), extra="breaker: {failures: 1, open_s: 600}")
    assert client.chat().status == 502
    answer = client.chat()
    assert (answer.status, answer.headers["retry-after"], len(server.calls)) == (503, "1", 1)


def test_replicas_share_the_load_by_what_they_have_to_do(world: World) -> None:
    """A replica that is stuck gets no more than its share: the next request goes to the least busy one."""
    slow, quick = world.upstream("v-l000", hang()), world.upstream("v-l000")
    extra = "timeouts: {connect: 20, total: 600, first_byte: 600}\naffinity: {enabled: false}"
    client = world.router(("v-l000", slow), ("v-l000", quick), extra=extra)
    stuck: list[socket.socket] = []

    def is_stuck() -> bool:
        if not slow.active:
            stuck.append(raw(client))
        return slow.active > 0

    until(is_stuck, pause=0.05)
    replicas = client.app.router.fleet.replicas
    until(lambda: sum(replica.outstanding for replica in replicas) == 1)
    assert [client.chat().status for _ in range(10)] == [200] * 10
    assert len(slow.calls) == 1
    for connection in stuck:
        connection.close()


def test_beyond_the_queue_there_is_429_with_retry_after(world: World) -> None:
    """Two inside, two waiting, the fifth is sent away; the waiting ones are answered in turn."""
    gate = threading.Event()

    async def script(call: Call, writer: object) -> None:
        await happened(gate.is_set)
        await plain()(call, writer)  # type: ignore[arg-type]

    server = world.upstream("v-l000", script)
    limits = "limits: {concurrency: 2, queue: 2, queue_wait: 50}\ntimeouts: {connect: 20, total: 600, first_byte: 600}"
    client = world.router(("v-l000", server), extra=limits)
    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(client.chat) for _ in range(4)]
        until(lambda: client.app.admission.waiting == 2)
        refused = client.chat()
        gate.set()
        assert [a.result().status for a in answers] == [200] * 4
    assert (refused.status, refused.headers["retry-after"], refused.json["error"]["code"]) == (429, "50", "overloaded")


def test_who_waits_too_long_is_sent_away(world: World) -> None:
    """The wait in the queue is bounded, and a place that is given up is not lost."""
    server = world.upstream("v-l000", hang())
    limits = "limits: {concurrency: 1, queue: 5, queue_wait: 0.2}\ntimeouts: {connect: 20, total: 600, first_byte: 600}"
    client = world.router(("v-l000", server), extra=limits)
    stuck = raw(client)
    until(lambda: server.active == 1)
    assert client.chat().status == 429
    stuck.close()
    until(lambda: client.app.admission.inside == 0)
    server.script = plain()
    assert client.chat().status == 200


def test_killing_a_server_under_load_loses_no_request(world: World) -> None:
    """Four hundred requests from eight clients while one of two servers dies and comes back: all are answered."""
    low, high = world.pair()
    client = world.router(
        ("v-l000", low),
        ("v-l100", high),
        extra="estimator: {chain: [], fixed: 0.5}\npolicy: {choose: dithered}\nprobe: {interval: 0.2, timeout: 20}",
    )

    def work(worker: int) -> list[int]:
        return [client.chat(f"{worker} {i}").status for i in range(50)]

    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(work, i) for i in range(8)]
        until(lambda: len(low.calls) > 10)
        world.loop.run(low.stop())
        answered = len(high.calls)
        until(lambda: len(high.calls) > answered + 40)
        world.loop.run(low.start())
        assert [status for r in results for status in r.result()] == [200] * 400


def test_a_slow_reader_holds_the_server_back(world: World) -> None:
    """A client that does not read keeps the server from sending: nothing is piled up in between."""
    sent = 0
    piece = b"data: " + b"x" * 65_000 + b"\n\n"

    async def script(call: Call, writer: object) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")  # type: ignore[attr-defined]
        while sent < 200 << 20:
            writer.write(piece)  # type: ignore[attr-defined]
            await writer.drain()  # type: ignore[attr-defined]
            sent += len(piece)

    server = world.upstream("v-l000", script)
    client = world.router(("v-l000", server), extra="timeouts: {connect: 20, idle: 600, total: 600, first_byte: 600}")
    connection = raw(client)
    before = 0
    while not sent or before != sent:
        before = sent
        time.sleep(0.5)
    assert sent < 40 << 20
    connection.close()
    until(lambda: server.active == 0)
