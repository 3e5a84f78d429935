"""The short cuts of the path that every request takes: each gives what the long way gives."""

from __future__ import annotations

import asyncio
import json
import string
from typing import Any

import pytest
from fakes.loop import Loop
from fakes.waiting import happened
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as Reference
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dami_router.messages.request import _quick, _scan
from dami_router.proxy.histogram import Histogram
from dami_router.proxy.watching import Watches

TEXT = st.sampled_from(["model", '"model"', 'a"model', '\\"model":"x"', "\n", "ü", "\\"]) | st.text(
    string.printable, max_size=4
)
INNER = TEXT | st.integers() | st.dictionaries(TEXT, TEXT, max_size=2) | st.lists(TEXT, max_size=2)


@given(
    st.lists(st.tuples(TEXT, INNER), max_size=4),
    st.booleans(),
    st.sampled_from([(",", ":"), (" , ", " :\n ")]),
    st.booleans(),
)
def test_the_quick_way_finds_the_model_where_the_slow_way_does(
    members: list[tuple[str, Any]], escape: bool, separators: tuple[str, str], spelled: bool
) -> None:
    """Keys and texts that look like `model`, doubled keys, escapes: the same members and places, or no short cut."""
    comma, colon = separators
    pairs = [
        json.dumps(key, ensure_ascii=escape) + colon + json.dumps(value, separators=separators, ensure_ascii=escape)
        for key, value in members
    ]
    text = "{" + comma.join(pairs) + "}"
    if spelled:
        text = text.replace('"model"', '"mod\\u0065l"', 1)
    found = _quick(text.encode())
    assert found is None or found == _scan(text, ("model",))


def test_the_quick_way_is_taken_by_ordinary_requests() -> None:
    """A chat as clients send it, with line ends and quotes in its text, needs no search by hand."""
    chat = {"model": "dami", "messages": [{"role": "user", "content": 'a "quoted"\nline'}], "stream": True}
    assert _quick(json.dumps(chat).encode()) == _scan(json.dumps(chat), ("model",))


@given(st.lists(st.sampled_from([0, 0.1, 0.3, 1, 5]) | st.floats(-1, 10), max_size=20))
def test_a_histogram_says_what_prometheus_would(values: list[float]) -> None:
    """Bounds belong to their bucket; text format and all."""
    bounds = (0.1, 0.3, 1, 5)
    ours, registry, theirs = Histogram(bounds), CollectorRegistry(), CollectorRegistry()
    reference = Reference("x", "Help.", buckets=bounds, registry=theirs)
    for value in values:
        ours.observe(value)
        reference.observe(value)

    class Own(Collector):
        def collect(self) -> list[Metric]:
            family = HistogramMetricFamily("x", "Help.")
            ours.add_to(family)
            return [family]

    registry.register(Own())
    wanted = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert generate_latest(registry).splitlines() == wanted


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.03])
def test_a_client_that_leaves_is_noticed_whenever_it_leaves(loop: Loop, seconds: float) -> None:
    """At once, before the wait for it has begun, or later."""

    async def run() -> None:
        left, noticed = asyncio.Event(), asyncio.Event()

        async def receive() -> dict[str, Any]:
            await left.wait()
            return {"type": "http.disconnect"}

        watches = Watches(age=0.01)
        watches.start(receive, noticed.set)
        await asyncio.sleep(seconds)
        left.set()
        async with asyncio.timeout(60):
            await noticed.wait()

    loop.run(run())


def test_quick_requests_are_not_watched(loop: Loop) -> None:
    """A request that ends soon costs no task; one that was stopped is never told of."""

    async def run() -> tuple[int, int, bool]:
        asked = told = 0
        noticed = asyncio.Event()

        async def receive() -> dict[str, Any]:
            nonlocal asked
            asked += 1
            return {"type": "http.disconnect"}

        def gone() -> None:
            nonlocal told
            told += 1
            noticed.set()

        watches = Watches(age=0.01)
        for _ in range(100):
            watches.start(receive, gone).stop()
        late = watches.start(receive, gone)
        async with asyncio.timeout(60):
            await noticed.wait()
            await happened(lambda: watches.resting)
        late.stop()
        return asked, told, watches.resting

    assert loop.run(run()) == (1, 1, True)
