"""The circuit breaker against its promise, whatever happens in whatever order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dami_router.upstream.breaker import Breaker


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(failures: int = 3, open_s: float = 5.0) -> tuple[Breaker, Clock]:
    """Return a breaker that has just opened."""
    clock = Clock()
    breaker = Breaker(failures, open_s, clock)
    for _ in range(failures):
        breaker.start()
        breaker.failed()
    return breaker, clock


def test_it_opens_at_the_limit_and_not_before() -> None:
    """Two failures of three leave it closed, the third opens it; a success in between starts the count anew."""
    breaker = Breaker(3, 5.0, Clock())
    for deed in (breaker.failed, breaker.failed, breaker.succeeded, breaker.failed, breaker.failed):
        breaker.start()
        deed()
        assert (breaker.state, breaker.ready) == ("closed", True)
    breaker.start()
    breaker.failed()
    assert (breaker.state, breaker.ready) == ("open", False)


def test_it_stays_open_for_its_time_and_then_lets_one_call_through() -> None:
    """Just before the time is over nothing may be sent; from then on one call at a time."""
    breaker, clock = opened(open_s=5.0)
    clock.now += 4.999
    assert (breaker.state, breaker.ready) == ("open", False)
    clock.now = 105.0
    assert (breaker.state, breaker.ready) == ("half-open", True)
    breaker.start()
    assert (breaker.state, breaker.ready) == ("half-open", False)


def test_a_failed_trial_opens_it_for_the_whole_time_again() -> None:
    """One failure after the trial is enough, and the time is counted from it."""
    breaker, clock = opened(open_s=5.0)
    clock.now += 7.0
    breaker.start()
    breaker.failed()
    clock.now += 4.9
    assert breaker.state == "open"
    clock.now += 0.2
    assert breaker.ready


def test_a_good_trial_closes_it_and_forgets_the_failures() -> None:
    """After a success the whole number of failures is needed again."""
    breaker, clock = opened(failures=2)
    clock.now += 5.0
    breaker.start()
    breaker.succeeded()
    assert (breaker.state, breaker.ready) == ("closed", True)
    breaker.start()
    breaker.failed()
    assert breaker.ready


def test_an_abandoned_trial_lets_the_next_call_try() -> None:
    """A client that leaves says nothing about the replica: the state stays, and another call may be the trial."""
    breaker, clock = opened()
    clock.now += 5.0
    breaker.start()
    breaker.abandoned()
    assert (breaker.state, breaker.ready) == ("half-open", True)
    closed = Breaker(2, 5.0, Clock())
    closed.failed()
    closed.abandoned()
    closed.failed()
    assert closed.state == "open"


def test_by_default_five_failures_open_it_for_five_seconds_of_real_time() -> None:
    """The documented defaults."""
    breaker = Breaker()
    for _ in range(4):
        breaker.failed()
    assert breaker.ready
    breaker.failed()
    assert breaker.state == "open"
    assert (breaker.failures, breaker.open_s) == (5, 5.0)


def test_a_stream_that_has_begun_closes_it_and_keeps_the_count() -> None:
    """Others may be sent at once; where the stream breaks, the failures before it still count."""
    breaker, clock = opened(failures=3)
    clock.now += 5.0
    breaker.start()
    breaker.began()
    assert (breaker.state, breaker.ready) == ("closed", True)
    breaker.failed()
    assert breaker.state == "open"
    fresh = Breaker(3, 5.0, Clock())
    for _ in range(3):
        assert fresh.state == "closed"
        fresh.start()
        fresh.began()
        fresh.failed()
    assert fresh.state == "open"


def test_it_can_be_opened_at_once() -> None:
    """Known trouble needs no failures; its time and its trial are as always, and one failed trial is enough."""
    clock = Clock()
    breaker = Breaker(3, 5.0, clock)
    breaker.trip()
    assert breaker.state == "open"
    clock.now += 5.0
    assert (breaker.state, breaker.ready) == ("half-open", True)
    breaker.start()
    breaker.trip()
    clock.now += 5.0
    assert breaker.ready
    breaker.start()
    breaker.began()
    breaker.failed()
    assert breaker.state == "open"


DEEDS = st.lists(st.sampled_from(["fail", "succeed", "abandon", "wait"]), max_size=60)


@given(DEEDS, st.integers(1, 4))
def test_calls_are_made_only_while_it_is_ready(deeds: list[str], limit: int) -> None:
    """Whatever happens: closed while the failures in a row are below the limit, else one trial each open time."""
    clock = Clock()
    breaker = Breaker(limit, 5.0, clock)
    row, waited, is_open = 0, True, False
    for deed in deeds:
        assert breaker.ready == (not is_open or waited)
        assert breaker.state == ("closed" if not is_open else "half-open" if waited else "open")
        if deed == "wait":
            clock.now += 5.0
            waited = True
            continue
        if not breaker.ready:
            continue
        breaker.start()
        assert breaker.ready == (not is_open)
        if deed == "succeed":
            breaker.succeeded()
            row, is_open = 0, False
        elif deed == "abandon":
            breaker.abandoned()
        else:
            breaker.failed()
            row += 1
            if is_open or row >= limit:
                is_open, waited = True, False
