"""Choosing a variant: ties and edges of the rules, equal figures, what a budget allows, remembered conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_router.choosing.budget import Budget
from dami_router.choosing.conversations import Conversations
from dami_router.choosing.policy import Figures, Rule, choose, dominated, fallbacks, nearest
from dami_router.errors import MisuseError

FIVE = [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("rule", "lambda_", "chosen"),
    [
        ("nearest", 0.125, 0.0), ("nearest", 0.375, 0.25), ("nearest", 0.13, 0.25),
        ("at-least", 0.25, 0.25), ("at-least", 0.26, 0.5), ("at-least", 1.0, 1.0),
        ("at-most", 0.25, 0.25), ("at-most", 0.24, 0.0), ("at-most", 0.0, 0.0),
        ("dithered", 0.25, 0.25), ("dithered", 0.3, 0.5), ("dithered", 1.0, 1.0),
    ],
)  # fmt: skip
def test_a_variant_at_lambda_itself_is_chosen_and_ties_go_down(rule: Rule, lambda_: float, chosen: float) -> None:
    """Every rule takes the variant at λ(q) itself; of two equally near ones `nearest` takes the smaller."""
    assert choose(lambda_, FIVE, rule) == chosen
    assert choose(lambda_, FIVE[::-1], rule) == chosen


@pytest.mark.parametrize("rule", ["nearest", "at-least", "at-most", "dithered"])
@pytest.mark.parametrize(("lambda_", "chosen"), [(0.1, 0.4), (0.9, 0.6)])
def test_beyond_the_variants_the_last_one_is_chosen(rule: Rule, lambda_: float, chosen: float) -> None:
    """Below the smallest λ and above the largest, every rule takes the end that is there."""
    assert choose(lambda_, [0.6, 0.4], rule) == chosen


@pytest.mark.parametrize(("draw", "up"), [(0.0, True), (0.24, True), (0.25, False), (0.26, False), (0.99, False)])
def test_dithering_takes_the_upper_neighbour_below_its_share(draw: float, up: bool) -> None:
    """A quarter of the way between two variants, draws in [0, ¼) go up and all others down; ¼ itself goes down."""
    assert choose(0.125, [0.0, 0.5, 1.0], "dithered", draw) == (0.5 if up else 0.0)
    assert choose(0.625, [0.0, 0.5, 1.0], "dithered", draw) == (1.0 if up else 0.5)


def test_only_dithering_looks_at_the_draw() -> None:
    """Without a rule the nearest variant is chosen; no other rule goes down because a draw is high."""
    assert choose(0.3, FIVE, draw=0.99) == choose(0.3, FIVE) == 0.25
    assert choose(0.3, FIVE, "at-least", draw=0.99) == 0.5
    assert choose(0.3, FIVE, "at-most", draw=0.0) == 0.25


@pytest.mark.parametrize("rule", ["nearest", "at-least", "at-most", "dithered"])
def test_without_variants_there_is_nothing_to_choose(rule: Rule) -> None:
    """No variant at all is a mistake with a message, whatever the rule."""
    with pytest.raises(MisuseError, match="no variant"):
        choose(0.5, [], rule)
    with pytest.raises(MisuseError, match="no variant"):
        nearest(0.5, [])


def test_fallbacks_take_the_lower_of_two_equally_near_variants_first() -> None:
    """A cheaper neighbour is tried before an equally near more expensive one, whatever the order they come in."""
    assert fallbacks(0.5, [1.0, 0.75, 0.25, 0.5, 0.0]) == [0.5, 0.25, 0.75, 0.0, 1.0]


def on(**variants: tuple[float, float]) -> dict[str, dict[str, Figures]]:
    """Return figures of variants on one benchmark."""
    return {name: {"b": Figures(*figures)} for name, figures in variants.items()}


@pytest.mark.parametrize(
    ("measured", "beaten"),
    [
        (on(a=(0.5, 10), b=(0.5, 20)), {"b"}),
        (on(a=(0.5, 10), b=(0.4, 10)), {"b"}),
        (on(a=(0.5, 10), b=(0.4, 20)), {"b"}),
        (on(a=(0.5, 10), b=(0.5, 10)), set()),
        (on(a=(0.5, 10), b=(0.6, 20)), set()),
        (on(a=(0.5, 10), b=(0.5, 20), c=(0.5, 30)), {"b", "c"}),
    ],
)
def test_equal_accuracy_is_beaten_by_fewer_tokens(
    measured: Mapping[str, Mapping[str, Figures]], beaten: set[str]
) -> None:
    """One of the two must be better and the other no worse; two variants with the same figures keep each other."""
    assert dominated(measured) == beaten


def test_a_variant_must_lose_on_every_benchmark_it_was_measured_on() -> None:
    """Better on one benchmark, or measured on one that the other was not, is enough to stay."""
    low, high = Figures(0.4, 20), Figures(0.5, 10)
    assert dominated({"a": {"x": high, "y": high}, "b": {"x": low, "y": low}}) == {"b"}
    assert dominated({"a": {"x": high, "y": low}, "b": {"x": low, "y": high}}) == set()
    assert dominated({"a": {"x": high}, "b": {"x": low, "y": low}}) == set()
    assert dominated({"a": {"x": high, "y": low}, "b": {"x": low}}) == {"b"}
    assert dominated({"a": {"x": high, "y": high}, "b": {"x": high, "y": low}}) == {"b"}


SMALL = st.builds(Figures, st.integers(0, 2).map(float), st.integers(0, 2).map(float))


@given(st.dictionaries(st.sampled_from("pqrstu"), SMALL, min_size=1))
def test_what_is_left_is_the_pareto_frontier(figures: dict[str, Figures]) -> None:
    """On one benchmark a variant is dropped exactly where another is as good in both figures and better in one."""

    def better(a: Figures, b: Figures) -> bool:
        ahead = (a.accuracy - b.accuracy, b.mean_tokens - a.mean_tokens)
        return min(ahead) >= 0 and max(ahead) > 0

    expected = {v for v in figures if any(better(figures[w], figures[v]) for w in figures)}
    assert dominated({name: {"b": value} for name, value in figures.items()}) == expected


COSTS = {"small": 1.0, "middle": 2.0, "large": 4.0}


def budget(mean: float, window: int, spent: Sequence[float] = (), unit: str = "tokens") -> Budget:
    """Return a budget with some requests in its window."""
    made = Budget("lambda" if unit == "lambda" else "tokens", mean, window, dict(COSTS))
    for cost in spent:
        made.spend("any", cost)
    return made


def test_before_the_first_request_nothing_is_spent() -> None:
    """An empty window has the mean 0 and room for one request of the mean."""
    assert budget(2.0, 3).spent == 0.0
    assert budget(2.0, 3).limited(9.0) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("spent", "room"),
    [((), 2), ((1,), 3), ((4,), 0), ((1, 1), 4), ((1, 1, 4), 1), ((4, 1, 1), 4), ((4, 4, 1), 1), ((9, 4, 1, 1), 4)],
)
def test_room_is_what_keeps_the_mean_over_the_window(spent: tuple[float, ...], room: float) -> None:
    """At a mean of 2 over 3 requests the next may cost what is left of 6 (of 2 for each in a window not yet full)."""
    made = budget(2.0, 3, spent)
    assert made.limited(100.0) == pytest.approx(room, abs=1e-6)
    assert made.limited(room / 2) == pytest.approx(room / 2)
    made.spend("any", made.limited(100.0))
    assert made.spent <= 2.0 + 1e-6


def test_a_budget_that_is_overdrawn_has_no_room() -> None:
    """More than is allowed was spent: the limit is 0, never below it."""
    assert budget(2.0, 3, (4, 4)).limited(1.0) == 0.0


@pytest.mark.parametrize(
    ("spent", "order", "allowed"),
    [
        ((), ["large", "middle", "small"], ["middle", "large", "small"]),
        ((), ["large", "small", "middle"], ["middle", "large", "small"]),
        ((4,), ["large", "middle", "small"], ["small", "large", "middle"]),
        ((4,), ["middle", "large", "small"], ["small", "middle", "large"]),
        ((), ["small", "large", "middle"], ["small", "large", "middle"]),
        ((1, 1), ["large", "middle", "small"], ["large", "middle", "small"]),
        ((1,), ["middle", "small", "large"], ["middle", "small", "large"]),
    ],
)
def test_the_most_expensive_variant_that_fits_comes_first(
    spent: tuple[float, ...], order: list[str], allowed: list[str]
) -> None:
    """Never one more expensive than was chosen; the others keep their order; where none fits, the cheapest leads."""
    assert budget(2.0, 3, spent).allow(order) == allowed


def test_a_cost_of_exactly_the_room_fits_in_spite_of_rounding() -> None:
    """Ten times 0.1 is not 1 in binary; a request that just keeps the mean is allowed all the same."""
    made = Budget("lambda", 0.1, 10, {"low": 0.0, "ten": 0.1})
    for _ in range(40):
        assert made.allow(["ten", "low"])[0] == "ten"
        made.spend("ten")
    assert made.spent == pytest.approx(0.1)


def test_a_variant_of_unknown_cost_is_taken_to_cost_the_mean() -> None:
    """It is neither feared nor favoured: it fits where a request of the mean fits."""
    made = budget(2.0, 3)
    assert made.allow(["new", "large", "small"]) == ["new", "large", "small"]
    assert made.spend("new").cost == 2.0
    made.spend("large")
    assert made.allow(["new", "small"])[0] == "small"


def test_an_entry_says_which_variant_it_was_for_and_whether_it_is_in_the_window() -> None:
    """Entries leave the window in the order they came in, one for each new one beyond it."""
    made = Budget.of_lambda(0.5, 2, {"a": 0.2, "b": 0.8})
    entries = [made.spend(variant) for variant in ("a", "b")]
    assert [(e.variant, e.cost, e.inside) for e in entries] == [("a", 0.2, True), ("b", 0.8, True)]
    assert made.spent == pytest.approx(0.5)
    made.spend("b", 0.4)
    assert [e.inside for e in entries] == [False, True]
    assert made.spent == pytest.approx(0.6)


def test_a_late_answer_corrects_only_what_is_in_the_window() -> None:
    """The cost of a request that left the window in the meantime changes nothing any more."""
    made = budget(2.0, 2)
    first, second = made.spend("small"), made.spend("small")
    made.spend("small")
    made.settle(first, "large", 100)
    assert made.spent == 1.0
    made.settle(second, "large", 3)
    assert made.spent == 2.0
    assert (second.variant, second.cost) == ("large", 3.0)


def test_expectations_follow_answers_slowly_and_begin_with_the_first() -> None:
    """Expected tokens move by a twentieth of the difference; an unmeasured variant starts at its first answer."""
    made = budget(2.0, 5)
    made.settle(made.spend("large"), "large", 24)
    assert made.expected["large"] == pytest.approx(4 + 0.05 * 20)
    made.settle(made.spend("new"), "new", 8)
    made.settle(made.spend("new"), "new", 28)
    assert made.expected["new"] == pytest.approx(8 + 0.05 * 20)


def test_a_budget_of_lambda_counts_lambda_and_never_tokens() -> None:
    """What an answer's tokens were does not matter; another variant's λ, or the λ that was sent, does."""
    lambdas = {"a": 0.2, "b": 0.8}
    made = Budget.of_lambda(0.5, 4, lambdas)
    assert (made.unit, made.mean, made.window, made.expected) == ("lambda", 0.5, 4, lambdas)
    assert made.expected is not lambdas
    entry = made.spend("a")
    made.settle(entry, "b", 1000)
    assert made.spent == 0.8
    assert made.expected == {"a": 0.2, "b": 0.8}
    made.settle(entry, "b", None, 0.37)
    assert made.spent == pytest.approx(0.37)
    tokens = budget(2.0, 4)
    tokens.settle(tokens.spend("large"), "small", None)
    assert tokens.spent == 1.0


def test_the_oldest_unused_conversation_is_forgotten() -> None:
    """Beyond the limit one is forgotten at a time; an answer makes its conversation the newest; λ may fall."""
    known = Conversations(2)
    known.answered(b"a", 0.9)
    known.answered(b"b", 0.5)
    known.answered(b"a", 0.3)
    known.answered(b"c", 0.7)
    assert [known.last(key) for key in (b"a", b"b", b"c")] == [0.3, None, 0.7]


def test_by_default_thousands_of_conversations_are_remembered() -> None:
    """Ten thousand fit, and what has no key is never remembered."""
    known = Conversations()
    known.answered(None, 1.0)
    for i in range(10_000):
        known.answered(b"%d" % i, 0.5)
    assert known.last(b"0") == 0.5
    assert known.last(None) is None
    known.answered(b"more", 0.5)
    assert known.last(b"0") is None
