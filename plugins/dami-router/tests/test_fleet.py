"""The fleet: which replica comes next, which variants are on offer, and what a replica is called at a λ."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_router.backends.backend import Identity
from dami_router.config.router_yml import parse_config
from dami_router.upstream.fleet import Fleet, Replica, Waiting


def fleet(*backends: tuple[str, str], variants: tuple[str, ...] = ("a", "b", "c")) -> Fleet:
    """Return a fleet of (variant, protocol); `live` is a live server."""
    lines = ["variants:", *(f"  - {{id: {id}, lambda: {i / 2}}}" for i, id in enumerate(variants)), "backends:"]
    for i, (variant, protocol) in enumerate(backends):
        of = "" if protocol == "live" else f"variant: {variant}, "
        lines.append(f'  - {{{of}url: "http://h{i}:1", protocol: {protocol}}}')
    return Fleet(parse_config("\n".join(lines), {}))


def opened(replica: Replica) -> None:
    """Open a replica's breaker."""
    for _ in range(replica.breaker.failures):
        replica.breaker.failed()


def test_variants_are_tried_in_order_and_each_replica_once() -> None:
    """First all of the first variant, then of the second; what was tried does not come again."""
    made = fleet(("a", "openai"), ("a", "openai"), ("b", "openai"), ("c", "openai"))
    tried: set[Replica] = set()
    order = []
    while (found := made.next(("a", "b"), tried)) is not None:
        assert found not in tried
        tried.add(found)
        order.append(found.variant.id)
    assert order == ["a", "a", "b"]


def test_the_least_busy_replica_comes_first_and_equals_take_turns() -> None:
    """Among equally busy replicas chance decides, so that none is left without work."""
    made = fleet(*[("a", "openai")] * 3)
    busy, one, two = made.replicas
    busy.outstanding = 2
    one.outstanding = two.outstanding = 1
    count = Counter(id(made.next(("a",), set())) for _ in range(200))
    assert set(count) == {id(one), id(two)}
    assert min(count.values()) > 50
    two.outstanding = 0
    assert {id(made.next(("a",), set())) for _ in range(20)} == {id(two)}


def test_dead_replicas_are_a_last_resort() -> None:
    """A healthy replica of a later variant is tried before a dead one of the first; a dead one before none at all."""
    made = fleet(("a", "openai"), ("b", "openai"), ("c", "openai"))
    first, second, third = made.replicas
    first.health = second.health = "dead"
    assert made.next(("a", "b", "c"), set()) is third
    assert made.next(("a", "b", "c"), {third}) is first
    assert made.next(("b", "a"), set()) is second


@pytest.mark.parametrize("health", ["unknown", "alive"])
def test_a_replica_that_was_not_probed_yet_counts_as_alive(health: Any) -> None:
    """Only a failed probe makes a replica dead."""
    made = fleet(("a", "openai"), ("b", "openai"))
    made.replicas[0].health = health
    assert made.next(("a", "b"), set()) is made.replicas[0]
    assert made.offered() == {"a", "b"}


def test_a_wrong_model_and_an_open_breaker_are_never_asked() -> None:
    """Not even where there is nothing else."""
    made = fleet(("a", "openai"), ("a", "openai"))
    made.replicas[0].health = "wrong"
    opened(made.replicas[1])
    assert made.next(("a",), set()) is None
    assert made.offered() == set()


def test_what_is_on_offer_is_what_is_healthy() -> None:
    """Dead variants are offered only where no healthy one is left."""
    made = fleet(("a", "openai"), ("b", "openai"), ("c", "openai"))
    made.replicas[0].health = "dead"
    opened(made.replicas[2])
    assert made.offered() == {"b"}
    made.replicas[1].health = "dead"
    assert made.offered() == {"a", "b"}


def test_a_route_reaches_the_protocols_that_have_it_alone() -> None:
    """Without a choice, a route is everywhere; a choice of protocols narrows what is offered and what comes next."""
    made = fleet(("a", "openai"), ("b", "tgi"), ("live", "live"))
    native, every = frozenset({"tgi", "live"}), frozenset({"tgi", "live", "openai"})
    assert made.offered() == made.offered(every) == {"a", "b", "live"}
    assert made.offered(native) == {"b", "live"}
    assert made.offered(frozenset({"openai"})) == {"a"}
    assert made.next(("a", "b"), set(), native) is made.replicas[1]
    assert made.next(("a", "live"), set(), native) is made.replicas[2]
    assert made.of("a", native) == []
    assert made.of("b", native) == [made.replicas[1]]


def test_a_replica_that_hangs_comes_last_until_it_recovers() -> None:
    """It counts as dead at once, with its trouble, whatever its breaker said; recovering undoes all of it."""
    made = fleet(("a", "openai"), ("b", "openai"))
    first, second = made.replicas
    first.hang("no completion in 60 s")
    assert (first.hung, first.health, first.trouble, first.usable) == (True, "dead", "no completion in 60 s", False)
    assert made.next(("a", "b"), set()) is second
    first.recover()
    assert (first.hung, first.health, first.trouble, first.usable) == (False, "alive", "", True)
    assert made.next(("a", "b"), set()) is first
    second.health, second.trouble = "dead", "refused"
    second.recover()
    assert (second.health, second.trouble) == ("dead", "refused")


def test_calls_that_wait_for_a_replica_that_hangs_are_given_up_once() -> None:
    """Every call before its first byte is ended, each one time; those that wait for a stream are never overdue."""

    async def run() -> None:
        replica = fleet(("a", "openai")).replicas[0]
        whole, streamed = (asyncio.create_task(asyncio.Event().wait()) for _ in range(2))
        replica.waiting = {Waiting(whole, 100.0, True, lambda: True), Waiting(streamed, 0.0, False, lambda: True)}
        assert not replica.overdue(160.0, 60.0)
        assert replica.overdue(160.1, 60.0)
        replica.give_up()
        assert all(call.given_up for call in replica.waiting)
        for task in (whole, streamed):
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
        late = asyncio.create_task(asyncio.Event().wait())
        replica.waiting.add(Waiting(late, 170.0, True, lambda: False))
        replica.give_up(movable=True)
        assert late.cancelling() == 0
        replica.give_up()
        assert late.cancelling() == 1
        replica.give_up()
        assert late.cancelling() == 1
        await asyncio.gather(late, return_exceptions=True)

    asyncio.run(run())


def test_a_variant_without_a_server_may_be_stood_for_by_a_live_one() -> None:
    """Itself where it is served, else a live server, else nothing; without any backends, another program sends."""
    assert fleet(("a", "openai")).standing_for("a") == "a"
    assert fleet(("a", "openai")).standing_for("b") is None
    assert fleet(("a", "openai"), ("live", "live")).standing_for("b") == "live"
    assert fleet(("a", "openai"), ("live", "live")).standing_for("a") == "a"
    text = "variants: [{id: a, lambda: 0}]\nbackends: [{variant: a, url: 'http://h:1', protocol: tgi}]"
    config = parse_config(text, {})
    alone = Fleet(replace(config, backends=()))
    assert alone.standing_for("b") == "b"
    assert alone.offered() == {"a"}


def test_a_replica_of_a_variant_has_its_lambda_and_names() -> None:
    """A variant answers at its own λ; TGI takes any name, others want the one that they were found under."""
    made = fleet(("b", "openai"), ("b", "tgi"))
    served, tgi = made.replicas
    assert (served.live, served.at(0.9), served.name(0.9), served.served_as(0.9)) == (False, 0.5, "b", "b")
    served.identity = Identity("org/b-served")
    assert served.served_as(0.9) == "org/b-served"
    assert (tgi.at(0.9), tgi.name(0.9), tgi.served_as(0.9)) == (0.5, "b", None)
    text = "variants: [{id: b, lambda: 0}]\nbackends: [{variant: b, url: 'http://h:1', protocol: openai, model: x}]"
    named = Fleet(parse_config(text, {})).replicas[0]
    named.identity = Identity("other")
    assert named.served_as(0.5) == "x"


def test_a_live_replica_answers_at_any_lambda_under_its_name() -> None:
    """The λ is the query's own, and the name asks for it."""
    live = fleet(("live", "live")).replicas[0]
    assert (live.live, live.at(0.37), live.name(0.37), live.served_as(0.37)) == (True, 0.37, "dami:0.37", "dami:0.37")


@pytest.mark.parametrize(
    ("told", "opens"),
    [
        ({"opens_think_from": 0.5}, {0.49: False, 0.5: True, 1.0: True}),
        ({"opens_think_from": None}, {0.0: False, 1.0: False}),
        ({"opens_think_from": "0.5"}, {1.0: False}),
        ({}, {1.0: False}),
        (None, {1.0: False}),
        (3, {1.0: False}),
    ],
)
def test_a_live_server_tells_from_which_lambda_its_template_opens_a_block(told: Any, opens: dict[float, bool]) -> None:
    """What it does not tell in a form that is understood counts as never."""
    live = fleet(("live", "live")).replicas[0]
    assert not live.opens_think(1.0)
    live.identity = Identity("live", info={"live": told})
    assert {lambda_: live.opens_think(lambda_) for lambda_ in opens} == opens


HEALTH = st.sampled_from(["unknown", "alive", "dead", "wrong"])


@given(st.lists(st.tuples(st.sampled_from("abc"), HEALTH, st.booleans(), st.integers(0, 3)), min_size=1, max_size=8))
def test_every_usable_replica_comes_and_the_better_ones_first(states: list[tuple[str, Any, bool, int]]) -> None:
    """Whatever their state: all usable replicas come once, all healthy ones before any dead one, none else."""
    made = fleet(*((variant, "openai") for variant, _, _, _ in states))
    for replica, (_, health, broken, outstanding) in zip(made.replicas, states, strict=True):
        replica.health, replica.outstanding = health, outstanding
        if broken:
            opened(replica)
    tried: set[Replica] = set()
    came: list[Replica] = []
    while (found := made.next("abc", tried)) is not None:
        came.append(found)
        tried.add(found)
    assert tried == {r for r in made.replicas if r.usable}
    ranks = [(r.health == "dead", r.variant.id) for r in came]
    assert ranks == sorted(ranks)
    for (rank, before), (following, after) in pairwise(zip(ranks, came, strict=True)):
        assert rank != following or before.outstanding <= after.outstanding
