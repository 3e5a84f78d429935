"""The order of variants for one request: rule, budget, conversation and what is on offer, without servers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_router.choosing.budget import Budget
from dami_router.choosing.ordering import Ordering, Wanted
from dami_router.choosing.policy import Figures

LAMBDAS = {"a": 0.0, "b": 0.3, "c": 0.6, "d": 1.0}
CHAT = b"how this conversation began"


def wish(
    lambda_: float, *, budgeted: bool = True, draw: float = 0.0, follow_up: bool = False, tool_loop: bool = False,
    limited: bool = False,
) -> Wanted:  # fmt: skip
    return Wanted(lambda_, budgeted, draw, CHAT, follow_up or tool_loop, tool_loop, limited)


def ordering(**options: object) -> Ordering:
    return Ordering(LAMBDAS, {id: {} for id in LAMBDAS}, any_lambda="live", **options)  # type: ignore[arg-type]


def test_the_nearest_variant_comes_first_and_the_others_by_distance_from_it() -> None:
    """λ(q) = 0.5 is answered by 0.6, then by its neighbours; of two equally near the lower comes first."""
    assert ordering().order(wish(0.5), set(LAMBDAS))[:2] == (0.5, ["c", "b", "d", "a"])


@given(st.floats(0, 1), st.sets(st.sampled_from(sorted(LAMBDAS)), min_size=1))
def test_every_offered_variant_is_in_the_order_once(lambda_: float, offered: set[str]) -> None:
    """Whatever is wanted and offered, the order holds each offered variant exactly once."""
    _, order, _ = ordering().order(wish(lambda_), offered)
    assert sorted(order) == sorted(offered)


def test_a_dominated_variant_is_the_last_to_be_tried() -> None:
    """A variant that another one beats is tried after all others, and first where it is the only one."""
    figures = {"b": {"bench": Figures(0.5, 100.0)}, "c": {"bench": Figures(0.6, 90.0)}, "a": {}, "d": {}}
    found = Ordering(LAMBDAS, figures, any_lambda="live")
    assert found.order(wish(0.3), set(LAMBDAS))[1] == ["a", "c", "d", "b"]
    assert found.order(wish(0.3), {"b"})[1] == ["b"]
    assert (
        Ordering(LAMBDAS, figures, any_lambda="live", drop_dominated=False).order(wish(0.3), set(LAMBDAS))[1][0] == "b"
    )


def test_a_live_server_is_asked_for_the_exact_lambda() -> None:
    """A live server comes first at λ(q) itself, rounded to six decimal places, with the variants behind it."""
    assert ordering().order(wish(0.41234567), {"a", "c", "live"})[:2] == (0.412346, ["live", "c", "a"])


def test_a_variant_of_the_same_lambda_comes_before_the_live_server() -> None:
    """Where a variant has exactly the wanted λ, it comes first: it reads its weights once."""
    assert ordering().order(wish(0.6), {"a", "c", "live"})[1] == ["c", "live", "a"]
    assert ordering().order(wish(0.600002), {"a", "c", "live"})[1] == ["live", "c", "a"]


def test_a_conversation_never_falls_below_the_lambda_of_its_last_answer() -> None:
    """With `sticky`, a follow-up prefers variants at or above the last λ; the first request is free."""
    found = ordering(sticky=True)
    found.answered(CHAT, "c", None, None, None)
    assert found.order(wish(0.0, follow_up=True), set(LAMBDAS))[1] == ["c", "d", "a", "b"]
    assert found.order(wish(0.0), set(LAMBDAS))[1][0] == "a"
    assert ordering().order(wish(0.0, follow_up=True), set(LAMBDAS))[1][0] == "a"


def test_a_conversation_is_held_on_a_live_server_too() -> None:
    """The λ of a live answer is the floor of the next one, also where the budget has less left."""
    found = ordering(sticky=True, budget=Budget.of_lambda(0.1, 10, LAMBDAS))
    found.answered(CHAT, "live", None, None, 0.7)
    assert found.order(wish(0.2, follow_up=True), {"live"})[:2] == (0.7, ["live"])


def test_the_budget_binds_only_where_the_router_chooses() -> None:
    """A pinned λ is not bent by the budget; an estimated one is."""
    found = ordering(budget=Budget.of_lambda(0.3, 10, LAMBDAS))
    assert found.order(wish(1.0), set(LAMBDAS))[1][0] == "b"
    assert found.order(wish(1.0, budgeted=False), set(LAMBDAS))[1][0] == "d"
    assert found.order(wish(1.0), {"live"})[:2] == (0.3, ["live"])
    assert found.order(wish(1.0, budgeted=False), {"live"})[:2] == (1.0, ["live"])


def test_the_budget_leaves_at_least_lambda_min() -> None:
    """On a live server the budget bends λ down to `lambda_min`, not below."""
    found = ordering(budget=Budget.of_lambda(0.0, 10, LAMBDAS), lambda_min=0.25)
    assert found.order(wish(1.0), {"live"})[:2] == (0.25, ["live"])


def test_a_live_answer_costs_its_lambda() -> None:
    """What a live answer costs the budget is its own λ, at the decision and when it is settled."""
    found = ordering(budget=Budget.of_lambda(0.5, 10, LAMBDAS))
    assert found.budget is not None
    entry = found.spend("live", 0.9)
    assert found.budget.spent == pytest.approx(0.9)
    found.answered(None, "live", entry, 12, 0.4)
    assert found.budget.spent == pytest.approx(0.4)


def test_an_answer_of_another_variant_costs_what_that_one_costs() -> None:
    """After a fallback the entry holds the cost of the variant that answered."""
    found = ordering(budget=Budget.of_lambda(0.5, 10, LAMBDAS))
    assert found.budget is not None
    entry = found.spend("d", 1.0)
    found.answered(None, "b", entry, None, 1.0)
    assert found.budget.spent == pytest.approx(0.3)


def test_the_draw_decides_only_under_the_dithered_rule() -> None:
    """`dithered` takes the upper neighbour for a small draw; `nearest` ignores the draw."""
    found = ordering(rule="dithered")
    assert found.order(wish(0.45, draw=0.4), set(LAMBDAS))[1][0] == "c"
    assert found.order(wish(0.45, draw=0.6), set(LAMBDAS))[1][0] == "b"
    assert {ordering().order(wish(0.5, draw=x), set(LAMBDAS))[1][0] for x in (0.0, 0.99)} == {"c"}


@pytest.mark.parametrize("before", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("wanted", [0.0, 0.5, 1.0])
def test_a_tool_loop_keeps_its_lambda_in_both_directions(before: float, wanted: float) -> None:
    """Whatever is estimated, budgeted or ruled meanwhile: the results of tools go back to the λ that asked for them."""
    found = ordering(sticky=True, rule="at-most", budget=Budget.of_lambda(0.1, 10, LAMBDAS))
    name = min(LAMBDAS, key=lambda id: abs(LAMBDAS[id] - before))
    found.answered(CHAT, name, None, None, None)
    assert found.order(wish(wanted, tool_loop=True), set(LAMBDAS)).order[0] == name
    found.answered(CHAT, "live", None, None, before)
    assert found.order(wish(wanted, tool_loop=True), {"live"}).lambda_ == before
    assert ordering().order(wish(wanted, tool_loop=True), {"live"}).lambda_ == wanted


def test_a_tool_loop_of_an_unknown_conversation_is_decided_as_any_request() -> None:
    """Another process, or a restarted one, remembers nothing."""
    assert ordering(sticky=True).order(wish(0.1, tool_loop=True), set(LAMBDAS)).order[0] == "a"


def test_variants_that_are_down_come_last_and_are_still_tried() -> None:
    """A variant that returns while the others fail can still answer: no order ends before every known one was tried."""
    found = ordering().order(wish(1.0), {"a", "b"}, set(LAMBDAS) | {"live"})
    assert (found.order, found.cause) == (["b", "a", "live", "d", "c"], "fallback")
    assert ordering().order(wish(0.0), {"a", "b"}, set(LAMBDAS)).cause == "estimator"


def test_the_cause_is_what_had_the_last_word() -> None:
    """The estimate, unless the policy, the budget, the conversation or a server that is down overruled it."""
    everything, any_lambda = set(LAMBDAS), {"live"}
    assert ordering().order(wish(0.45), everything).cause == "estimator"
    assert ordering().order(wish(0.0, limited=True), everything).cause == "policy"
    assert ordering(rule="at-least").order(wish(0.31), everything).cause == "policy"
    assert ordering(rule="at-least").order(wish(0.5), everything).cause == "estimator"
    tight = Budget.of_lambda(0.3, 10, LAMBDAS)
    for offered in (everything, any_lambda):
        assert ordering(budget=tight).order(wish(1.0), offered).cause == "budget"
        assert ordering(budget=tight).order(wish(0.0), offered).cause == "estimator"
        found = ordering(sticky=True, budget=tight)
        found.answered(CHAT, "c", None, None, 0.5)
        assert found.order(wish(1.0, follow_up=True), offered).cause == "conversation"
        assert found.order(wish(0.0, tool_loop=True), offered).cause == "conversation"
        assert found.order(wish(0.5, tool_loop=True, budgeted=False), offered).cause == "estimator"
