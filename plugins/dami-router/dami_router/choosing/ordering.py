"""The order in which to try variants: the rule, the budget, the conversation, and what is on offer."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Literal, NamedTuple

from dami_router.choosing.budget import Budget, Entry
from dami_router.choosing.conversations import Conversations
from dami_router.choosing.policy import Figures, Rule, choose, dominated, fallbacks

__all__ = ["SAME_LAMBDA", "Cause", "Ordered", "Ordering", "Wanted"]

SAME_LAMBDA = 1e-6
"""Two λ nearer than this are one: names and replies carry six decimal places."""


class Wanted(NamedTuple):
    """What a request wants: λ in [0, 1], and what else bends the choice.

    `budgeted`: the budget applies, since the client left the choice of λ to the router. `draw` in [0, 1) decides the
    `dithered` rule. `conversation` names the conversation, None where it has none; `follow_up`: it has begun before;
    `tool_loop`: this request brings the results of its tools. `limited`: the policy's limits moved λ.
    """

    lambda_: float
    budgeted: bool
    draw: float
    conversation: bytes | None
    follow_up: bool
    tool_loop: bool = False
    limited: bool = False


Cause = Literal["estimator", "policy", "budget", "conversation", "fallback"]
"""What had the last word on an order: each one overrules those before it."""


class Ordered(NamedTuple):
    """The λ to answer at, the variants in the order to try, and what decided on the first of them."""

    lambda_: float
    order: list[str]
    cause: Cause


class Ordering:
    """Orders the variants of one family; `any_lambda` is the id that stands for a server of every λ.

    `lambdas` and `figures` are by variant id. With `drop_dominated`, dominated variants come last. With `sticky`, the λ
    of a conversation never falls, and does not change while its tools are called.
    """

    def __init__(
        self, lambdas: Mapping[str, float], figures: Mapping[str, Mapping[str, Figures]], *, any_lambda: str,
        rule: Rule = "nearest", lambda_min: float = 0.0, sticky: bool = False, drop_dominated: bool = True,
        budget: Budget | None = None,
    ) -> None:  # fmt: skip
        self.lambdas, self.budget = dict(lambdas), budget
        self._any, self._rule, self._lambda_min, self._sticky = any_lambda, rule, lambda_min, sticky
        self._conversations = Conversations()
        self.considered = frozenset(self.lambdas) - (dominated(figures) if drop_dominated else set())

    def order(self, wanted: Wanted, offered: AbstractSet[str], known: AbstractSet[str] = frozenset()) -> Ordered:
        """Return the variants on offer, not empty, in their order; then those only `known`, in case they return."""
        found = self._order(wanted, offered)
        if len(known) <= len(offered):
            return found
        later = known - offered
        spare = [*({self._any} & later), *self._ranked(found.lambda_, later - {self._any}, wanted.draw, "nearest")]
        missed = self._order(wanted, known).order[0] != found.order[0]
        return Ordered(found.lambda_, [*found.order, *spare], "fallback" if missed else found.cause)

    def _order(self, wanted: Wanted, offered: AbstractSet[str]) -> Ordered:
        if self._any not in offered:
            return self._fixed(wanted.lambda_, offered, wanted)
        lambda_, cause = self._bent(wanted)
        order = self._fixed(lambda_, offered - {self._any}, wanted._replace(budgeted=False)).order
        # A server of its own reads the same weights once, a live server reads two endpoints: it comes first.
        same = bool(order) and abs(self.lambdas[order[0]] - lambda_) < SAME_LAMBDA
        return Ordered(lambda_, [*order[:same], self._any, *order[same:]], cause)

    def spend(self, variant: str, lambda_: float) -> Entry | None:
        """Enter a decision into the budget; None where there is none."""
        if self.budget is None:
            return None
        return self.budget.spend(variant, lambda_ if variant == self._any else None)

    def answered(
        self, conversation: bytes | None, variant: str, entry: Entry | None, tokens: int | None, lambda_: float | None
    ) -> None:
        """Note an answer: its cost, and the λ of its conversation; `lambda_` None means the variant's own."""
        if entry is not None and self.budget is not None:
            self.budget.settle(entry, variant, tokens, lambda_ if variant == self._any else None)
        if self._sticky:
            self._conversations.answered(conversation, self.lambdas[variant] if lambda_ is None else lambda_)

    def _bent(self, wanted: Wanted) -> tuple[float, Cause]:
        """Return the λ that budget and conversation leave of what is wanted, for servers that take any."""
        lambda_, cause = wanted.lambda_, _first(wanted)
        held, floor = self._remembered(wanted)
        if held is not None:
            return round(held, 6), cause if abs(held - lambda_) < SAME_LAMBDA else "conversation"
        if wanted.budgeted and self.budget is not None:
            lambda_ = max(self.budget.limited(lambda_), self._lambda_min)
            cause = cause if lambda_ == wanted.lambda_ else "budget"
        return (round(lambda_, 6), cause) if lambda_ >= floor else (round(floor, 6), "conversation")

    def _fixed(self, lambda_: float, offered: AbstractSet[str], wanted: Wanted) -> Ordered:
        """Order the variants that have servers of their own."""
        # Dominated variants are tried only where no other is left.
        ids, cause = (self.considered & offered) or offered, _first(wanted)
        if not ids:
            return Ordered(lambda_, [], cause)
        order = self._ranked(lambda_, ids, wanted.draw, self._rule)
        if self._rule != "nearest" or len(ids) < len(offered):
            plain = self._ranked(lambda_, offered, wanted.draw, "nearest")
            cause = "policy" if self.lambdas[order[0]] != self.lambdas[plain[0]] else cause
        first = order[0]
        if wanted.budgeted and self.budget is not None:
            order = self.budget.allow(order)
            cause, first = cause if order[0] == first else "budget", order[0]
        held, floor = self._remembered(wanted)
        if held is not None:
            order = self._ranked(held, offered, wanted.draw, "nearest")
        elif floor > 0.0:
            order = sorted(order, key=lambda id: self.lambdas[id] < floor)
        cause = cause if order[0] == first else "conversation"
        if len(order) < len(offered):
            order += self._ranked(self.lambdas[order[0]], offered - set(order), wanted.draw, self._rule)
        return Ordered(lambda_, order, cause)

    def _ranked(self, lambda_: float, ids: AbstractSet[str], draw: float, rule: Rule) -> list[str]:
        if len(ids) < 2:
            return list(ids)
        by_lambda: dict[float, list[str]] = {}
        for id in sorted(ids):
            by_lambda.setdefault(self.lambdas[id], []).append(id)
        first = choose(lambda_, list(by_lambda), rule, draw)
        return [id for value in fallbacks(first, list(by_lambda)) for id in by_lambda[value]]

    def _remembered(self, wanted: Wanted) -> tuple[float | None, float]:
        """Return the λ that a tool loop keeps, else None, and the λ below which the conversation must not fall."""
        if not self._sticky or not wanted.follow_up:
            return None, 0.0
        last = self._conversations.last(wanted.conversation)
        return (last, 0.0) if wanted.tool_loop else (None, last or 0.0)


def _first(wanted: Wanted) -> Cause:
    return "policy" if wanted.limited else "estimator"
