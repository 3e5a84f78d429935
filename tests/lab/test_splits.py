"""The splits: stable, disjoint, and never trained on."""

from __future__ import annotations

import hashlib
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_merge.lab.splits import draw_chain, draw_queries, draw_training_chain, split_of
from dami_merge.lab.task import evaluate, length


def test_split_of_a_chain_never_changes() -> None:
    """The split depends on the chain's text alone, in a way written down here."""
    assert [split_of(c) for c in ("3+7-2>5=", "5+5-1=", "7>1<3=")] == ["train", "test", "test"]


def test_the_queries_never_change() -> None:
    """The held-out queries are the ones that the published figures were measured on."""
    texts = "\n".join(q.text for split in ("dev", "test") for q in draw_queries(split))  # type: ignore[arg-type]
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "3d581bff51d8b0de"


def test_queries_are_distinct_and_of_their_split() -> None:
    """1,000 different chains each for dev and test, none in both, each with its right answer."""
    dev, test = draw_queries("dev"), draw_queries("test")
    for split, queries in (("dev", dev), ("test", test)):
        assert len({q.text for q in queries}) == len({q.id for q in queries}) == 1000
        assert {split_of(q.text) for q in queries} == {split}
        assert all((q.expected, q.length) == (evaluate(q.text), length(q.text)) for q in queries)
    assert not {q.text for q in dev} & {q.text for q in test}


def test_lengths_are_as_even_as_distinct_chains_allow() -> None:
    """n = 2…10 differ by at most one query; n = 1 has every chain of its split."""
    counts = Counter(q.length for q in draw_queries("test"))
    assert sorted(counts) == list(range(1, 11))
    ones = [f"{a}{o}{b}=" for a in range(10) for o in "+-<>" for b in range(10)]
    assert counts.pop(1) == sum(split_of(c) == "test" for c in ones)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_any_leading_part_mixes_lengths() -> None:
    """The order does not depend on length, so that a demo may take the first few queries."""
    assert {q.length for q in draw_queries("test")[:100]} == set(range(1, 11))


@given(st.integers())
def test_training_draws_no_held_out_chain_for_any_seed(seed: int) -> None:
    """Whatever the seed, training chains are of the train split and at most 7 operations long."""
    rng = Random(seed)
    for _ in range(20):
        chain = draw_training_chain(rng)
        assert split_of(chain) == "train"
        assert 1 <= length(chain) <= 7


def test_a_quarter_of_long_chains_is_pure() -> None:
    """Pure maximum or minimum chains keep length from telling how hard a chain is."""
    rng = Random(0)
    drawn = [draw_chain(rng, 8) for _ in range(4000)]
    assert sum(len(set(c[1:-1:2])) == 1 for c in drawn) / 4000 == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(("split", "count"), [("train", 10), ("validation", 10), ("test", -1)])
def test_only_held_out_splits_are_drawn(split: str, count: int) -> None:
    """Asking for training queries, unknown splits or negative counts is refused."""
    with pytest.raises(ValueError, match="drawn from 'dev', 'test', 'fresh'"):
        draw_queries(split, count)  # type: ignore[arg-type]


def test_fresh_queries_are_in_no_other_draw() -> None:
    """The larger test's chains are of the test split, distinct, and none is among the test or dev queries."""
    fresh = [q.text for q in draw_queries("fresh", 600)]
    assert len(set(fresh)) == 600
    assert {split_of(chain) for chain in fresh} == {"test"}
    assert not set(fresh) & {q.text for q in (*draw_queries("test"), *draw_queries("dev"))}
