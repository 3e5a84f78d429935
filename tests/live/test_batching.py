"""Rows that come and go: nobody's answer depends on who else is there."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.live import make_live_pair
from support.pairs import VOCABULARY, Pair

from dami_merge.live import Completion, Engine, Event, Generation, Row
from dami_router.errors import MisuseError


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A Mistral pair: its window of eight tokens makes attention depend on positions."""
    return make_live_pair(tmp_path_factory.mktemp("pair"), "mistral", sliding_window=8)


def load(pair: Pair, **options: object) -> Engine:
    """Load a pair in mixed mode, so that each pass does the same arithmetic for a row."""
    return Engine.load(str(pair.instruct), str(pair.thinking), mode="mixed", **options)  # type: ignore[arg-type]


def drain(engine: Engine) -> dict[Row, list[Event]]:
    """Step until nothing is left and return each row's events."""
    seen: dict[Row, list[Event]] = {}
    while engine.busy:
        for event in engine.step():
            seen.setdefault(event.row, []).append(event)
    return seen


def generation(seed: int, **more: object) -> Generation:
    """A request of random length, λ and sampling."""
    rng = random.Random(seed)
    prompt = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 30))]
    return Generation(
        prompt, rng.random(), max_new_tokens=rng.randint(1, 25), ignore_eos=True,
        temperature=rng.choice([0.0, 0.7, 1.5]), seed=seed, log_probs=True, **more,
    )  # fmt: skip


@settings(max_examples=8)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 6)), min_size=2, max_size=9), st.integers(2, 5))
def test_a_row_writes_the_same_whoever_shares_its_batch(
    pair: Pair, arrivals: list[tuple[int, int]], max_rows: int
) -> None:
    """Rows that join and leave at random times, read in small pieces, write the tokens that they write alone."""
    crowd, alone = load(pair, max_rows=max_rows, prefill=7), load(pair)
    seen: dict[Row, list[Event]] = {}
    rows = []
    for seed, pause in arrivals:
        rows.append(crowd.add(generation(seed)))
        for _ in range(pause):
            for event in crowd.step():
                seen.setdefault(event.row, []).append(event)
    for row, events in drain(crowd).items():
        seen.setdefault(row, []).extend(events)
    for row in rows:
        (expected,) = alone.complete([row.generation])
        assert [event.token for event in seen[row]] == list(expected.tokens)
        assert [event.log_prob for event in seen[row]] == pytest.approx(list(expected.log_probs), abs=1e-4)
        assert [bool(event.finish_reason) for event in seen[row]] == [False] * (len(expected.tokens) - 1) + [True]


def test_a_removed_row_is_gone_and_the_others_go_on(pair: Pair) -> None:
    """Removing rows that are read, being read or waiting leaves the answers of all others as they were."""
    wanted = [generation(seed) for seed in range(6)]
    expected = [load(pair).complete([one])[0] for one in wanted]
    engine = load(pair, max_rows=4, prefill=16)
    rows = [engine.add(one) for one in wanted]
    events = [*engine.step(), *engine.step()]
    for index in (0, 3, 5):
        engine.remove(rows[index])
        engine.remove(rows[index])
    late = [event for some in drain(engine).values() for event in some]
    assert not {event.row for event in late} & {rows[0], rows[3], rows[5]}
    for index in (1, 2, 4):
        tokens = tuple(event.token for event in [*events, *late] if event.row is rows[index])
        assert tokens == expected[index].tokens
    assert engine.rows == engine.waiting == engine.cache_bytes == 0


def test_capacity_is_told_and_kept(pair: Pair) -> None:
    """At most max_rows rows are worked on; the rest wait in order, and the counts say so."""
    engine = load(pair, max_rows=2)
    assert (engine.rows, engine.waiting, engine.free, engine.busy) == (0, 0, 2, False)
    for _ in range(3):
        engine.add(Generation([1, 2], 0.5, max_new_tokens=3, ignore_eos=True))
    assert (engine.rows, engine.waiting, engine.free, engine.busy) == (0, 3, 0, True)
    assert len(engine.step()) == 2
    assert (engine.rows, engine.waiting) == (2, 1)
    assert [len(events) for events in drain(engine).values()] == [2, 2, 3]
    assert engine.free == 2


def test_a_long_prompt_does_not_keep_others_waiting(pair: Pair) -> None:
    """While a long prompt is read in pieces, a row that writes gets its token in every step."""
    engine = load(pair, prefill=10)
    short = engine.add(Generation([1], 0.2, max_new_tokens=30, ignore_eos=True))
    engine.step()
    long = engine.add(Generation(list(range(40)), 0.9, max_new_tokens=5, ignore_eos=True))
    steps = [[event.row for event in engine.step()] for _ in range(4)]
    assert steps == [[short], [short], [short], [short, long]]


def test_an_answer_ends_where_the_model_does(pair: Pair) -> None:
    """Prompt and answer together take max_length tokens at most; a prompt that leaves no room is refused."""
    engine = load(pair, max_length=20)
    (answer,) = engine.complete([Generation([5] * 17, 0.5, max_new_tokens=100, ignore_eos=True)])
    assert (len(answer.tokens), answer.finish_reason) == (3, "length")
    with pytest.raises(MisuseError, match="the prompt has 20 tokens; at most 19"):
        engine.add(Generation([5] * 20, 0.5))


def test_a_long_row_takes_its_memory_with_it(pair: Pair) -> None:
    """When a long row has gone, keys and values shrink to what the short one needs, whose answer is as it was alone."""
    asked = Generation([4, 5], 0.6, max_new_tokens=12, ignore_eos=True)
    (expected,) = load(pair).complete([asked])
    engine = load(pair, prefill=510)
    engine.add(Generation([7] * 500, 0.1, max_new_tokens=2, ignore_eos=True))
    short = engine.add(asked)
    events, taken = [], []
    while engine.busy:
        events += engine.step()
        taken.append(engine.cache_bytes)
    # 3 layers of keys and values, 2 heads of 8 numbers: 2 rows of 512 places, then 1 of 128.
    assert taken[0] == 3 * 2 * 2 * 8 * 4 * 2 * 512
    assert taken[-2:] == [3 * 2 * 2 * 8 * 4 * 128, 0]
    assert tuple(event.token for event in events if event.row is short) == expected.tokens


def test_streaming_gives_what_generate_gives(pair: Pair) -> None:
    """The events of a stream put together are the completions, and abandoning a stream frees its rows."""
    engine = load(pair)
    asked = [generation(seed) for seed in (3, 4)]
    whole = engine.complete(asked)
    parts: dict[int, list[Event]] = {}
    for event in engine.stream(asked):
        parts.setdefault(event.row.id, []).append(event)
    assert [tuple(e.token for e in events) for _, events in sorted(parts.items())] == [c.tokens for c in whole]
    assert ["".join(e.text for e in events) for _, events in sorted(parts.items())] == [c.text for c in whole]
    stream = engine.stream([generation(5), generation(6)])
    next(stream)
    stream.close()
    assert not engine.busy
    assert isinstance(whole[0], Completion)
