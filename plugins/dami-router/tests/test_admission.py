"""Admission: who enters at once, who waits, who is sent away; and that no place is ever lost or given twice."""

from __future__ import annotations

import asyncio

import pytest
from fakes.waiting import happened
from hypothesis import given
from hypothesis import strategies as st

from dami_router.proxy.admission import Admission, OverloadedError


def test_places_are_given_until_none_is_left() -> None:
    """As many enter at once as there are places; the next one waits, the one after the queue is sent away."""

    async def run() -> None:
        admission = Admission(2, 1, 60)
        for inside in (1, 2):
            await admission.enter()
            assert (admission.inside, admission.waiting) == (inside, 0)
        third = asyncio.create_task(admission.enter())
        await happened(lambda: admission.waiting == 1)
        with pytest.raises(OverloadedError) as refused:
            await admission.enter()
        assert refused.value.retry_after == 60
        assert (admission.inside, admission.waiting, third.done()) == (2, 1, False)
        admission.leave()
        await third
        assert (admission.inside, admission.waiting) == (2, 0)
        admission.leave()
        admission.leave()
        assert admission.inside == 0

    asyncio.run(run())


def test_the_longest_waiting_request_enters_first() -> None:
    """First come, first served; a newcomer does not overtake those who wait, even where a place is free by then."""

    async def run() -> None:
        admission, order = Admission(1, 5, 60), []

        async def request(number: int) -> None:
            await admission.enter()
            order.append(number)
            await asyncio.sleep(0)
            admission.leave()

        await admission.enter()
        tasks = [asyncio.create_task(request(number)) for number in range(4)]
        await happened(lambda: admission.waiting == 4)
        admission.leave()
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3]
        assert (admission.inside, admission.waiting) == (0, 0)

    asyncio.run(run())


def test_a_request_that_gives_up_leaves_the_queue() -> None:
    """A client that goes while it waits takes nobody's place and keeps none."""

    async def run() -> None:
        admission = Admission(1, 5, 60)
        await admission.enter()
        gone, stays = (asyncio.create_task(admission.enter()) for _ in range(2))
        await happened(lambda: admission.waiting == 2)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert (admission.inside, admission.waiting) == (1, 1)
        admission.leave()
        await stays
        assert (admission.inside, admission.waiting) == (1, 0)

    asyncio.run(run())


def test_a_turn_that_comes_as_its_request_goes_is_passed_on() -> None:
    """Leaving and giving up in the same moment: the place goes to the next one, or becomes free."""

    async def run() -> None:
        admission = Admission(1, 5, 60)
        await admission.enter()
        gone, stays = (asyncio.create_task(admission.enter()) for _ in range(2))
        await happened(lambda: admission.waiting == 2)
        admission.leave()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await stays
        assert (admission.inside, admission.waiting) == (1, 0)
        last = asyncio.create_task(admission.enter())
        await happened(lambda: admission.waiting == 1)
        admission.leave()
        last.cancel()
        with pytest.raises(asyncio.CancelledError):
            await last
        assert admission.inside == 0

    asyncio.run(run())


@pytest.mark.parametrize(("wait_s", "retry_after"), [(0.01, 1), (0.0, 1)])
def test_a_wait_that_is_too_long_ends(wait_s: float, retry_after: int) -> None:
    """The request is sent away with at least a second's advice, and its place in the queue is free again."""

    async def run() -> None:
        full = Admission(0, 0, wait_s)
        with pytest.raises(OverloadedError, match=r"^overloaded$") as refused:
            await full.enter()
        assert refused.value.retry_after == retry_after
        admission = Admission(1, 1, wait_s)
        await admission.enter()
        for _ in range(3):
            with pytest.raises(OverloadedError) as refused:
                await admission.enter()
            assert (refused.value.retry_after, admission.waiting, admission.inside) == (retry_after, 0, 1)

    asyncio.run(run())


def test_without_a_queue_nobody_waits() -> None:
    """The advice is the longest wait, in whole seconds."""

    async def run() -> None:
        admission = Admission(1, 0, 7.4)
        await admission.enter()
        with pytest.raises(OverloadedError) as refused:
            await admission.enter()
        assert refused.value.retry_after == 7
        admission.leave()
        await admission.enter()

    asyncio.run(run())


DEEDS = st.lists(st.tuples(st.sampled_from(["enter", "leave", "give up"]), st.integers(0, 9)), max_size=40)


@given(DEEDS, st.integers(1, 3), st.integers(0, 3))
def test_no_place_is_lost_or_given_twice(deeds: list[tuple[str, int]], places: int, queue: int) -> None:
    """Whatever comes and goes in whatever order, those inside are never too many, and at the end nobody is."""

    async def run() -> None:
        admission = Admission(places, queue, 60)
        tasks: list[asyncio.Task[None]] = []
        inside: list[asyncio.Task[None]] = []
        for deed, which in deeds:
            if deed == "enter":
                tasks.append(asyncio.create_task(admission.enter()))
            elif deed == "leave" and inside:
                inside.pop(which % len(inside))
                admission.leave()
            elif deed == "give up" and (waiting := [t for t in tasks if not t.done()]):
                waiting[which % len(waiting)].cancel()
            for _ in range(6):
                await asyncio.sleep(0)
            ended = [t for t in tasks if t.done()]
            tasks = [t for t in tasks if not t.done()]
            inside += [t for t in ended if not t.cancelled() and t.exception() is None]
            assert admission.inside == len(inside) <= places
            assert admission.waiting == len(tasks) <= queue
            assert not tasks or len(inside) == places
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in inside:
            admission.leave()
        assert (admission.inside, admission.waiting) == (0, 0)

    asyncio.run(run())
