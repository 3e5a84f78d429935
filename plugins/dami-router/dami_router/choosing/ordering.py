"""The order in which to try variants: the rule, the budget, the conversation, and what is on offer."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from dami_router.choosing.budget import Budget, Entry
from dami_router.choosing.conversations import Conversations
from dami_router.choosing.policy import Figures, Rule, choose, dominated, fallbacks

__all__ = ["SAME_LAMBDA", "Ordering", "Wanted"]

SAME_LAMBDA = 1e-6
"""Two λ nearer than this are one: names and replies carry six digits."""


class Wanted(NamedTuple):
    """What a request wants: λ in [0, 1], and what else bends the choice.

    `budgeted`: the budget applies, since the client left the choice of λ to the router. `draw` in [0, 1) decides the
    `dithered` rule. `conversation` names the conversation, None where it has none; `follow_up`: it has begun before.
    """

    lambda_: float
    budgeted: bool
    draw: float
    conversation: bytes | None
    follow_up: bool


class Ordering:
    """Orders the variants of one family; `any_lambda` is the id that stands for a server of every λ.

    `lambdas` and `figures` are by variant id. With `drop_dominated`, dominated variants come last. With `sticky`, the λ
    of a conversation never falls.
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

    def order(self, wanted: Wanted, offered: AbstractSet[str]) -> tuple[float, list[str]]:
        """Return the λ to answer at, and the offered variants in the order to try; `offered` is not empty."""
        if self._any not in offered:
            return wanted.lambda_, self._fixed(wanted.lambda_, offered, wanted, budgeted=wanted.budgeted)
        lambda_ = self._bent(wanted)
        order = self._fixed(lambda_, offered - {self._any}, wanted, budgeted=False)
        # A server of its own reads the same weights once, a live server reads two endpoints: it comes first.
        same = bool(order) and abs(self.lambdas[order[0]] - lambda_) < SAME_LAMBDA
        return lambda_, [*order[:same], self._any, *order[same:]]

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

    def _bent(self, wanted: Wanted) -> float:
        """Return the λ that budget and conversation leave of what is wanted, for servers that take any."""
        lambda_ = wanted.lambda_
        if wanted.budgeted and self.budget is not None:
            lambda_ = max(self.budget.limited(lambda_), self._lambda_min)
        return round(max(lambda_, self._floor(wanted)), 6)

    def _fixed(self, lambda_: float, offered: AbstractSet[str], wanted: Wanted, *, budgeted: bool) -> list[str]:
        """Return the order of the variants that have servers of their own."""
        # Dominated variants are tried only where no other is left.
        ids = (self.considered & offered) or offered
        if not ids:
            return []
        order = self._ranked(lambda_, ids, wanted.draw)
        if budgeted and self.budget is not None:
            order = self.budget.allow(order)
        floor = self._floor(wanted)
        if floor > 0.0:
            order = sorted(order, key=lambda id: self.lambdas[id] < floor)
        spare = self._ranked(self.lambdas[order[0]], offered - ids, wanted.draw) if offered - ids else []
        return [*order, *spare]

    def _ranked(self, lambda_: float, ids: AbstractSet[str], draw: float) -> list[str]:
        if len(ids) == 1:
            return list(ids)
        by_lambda: dict[float, list[str]] = {}
        for id in sorted(ids):
            by_lambda.setdefault(self.lambdas[id], []).append(id)
        first = choose(lambda_, list(by_lambda), self._rule, draw)
        return [id for value in fallbacks(first, list(by_lambda)) for id in by_lambda[value]]

    def _floor(self, wanted: Wanted) -> float:
        """Return the λ of the conversation's last answer: it never falls while a variant at or above it is there."""
        return self._conversations.floor(wanted.conversation) if self._sticky and wanted.follow_up else 0.0
