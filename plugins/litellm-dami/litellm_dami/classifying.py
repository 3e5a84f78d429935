"""A `ClassifierPlugin` for LiteLLM's `auto_router/complexity_router`: the tier is the variant of λ(q).

LiteLLM asks for nothing but an object with `async classify(context)`, so this needs no LiteLLM to import.
"""

from __future__ import annotations

from typing import Any, Protocol

from litellm_dami.deciding import Decider, Source
from litellm_dami.reading import request_of

__all__ = ["Context", "DamiClassifier"]


class Context(Protocol):
    """What of LiteLLM's `RoutingContext` is read: the messages in OpenAI's form."""

    structured_messages: list[dict[str, Any]]


class DamiClassifier:
    """Names the variant of each request's λ(q); the tiers must be called as the variants of router.yml.

    LiteLLM shows a classifier the messages and not the other fields, so `reasoning_effort` plays no part.
    """

    def __init__(self, router: Source) -> None:
        self._decider = Decider(router)

    def __deepcopy__(self, memo: dict[int, object]) -> DamiClassifier:
        """Return itself: LiteLLM copies its configuration, with this in it, and state is to be shared."""
        return self

    async def classify(self, context: Context) -> str | None:
        """Return the variant's id; None (LiteLLM's own fallback decides) for a request without text."""
        request = request_of({"messages": context.structured_messages}, "dami")
        if not request.text:
            return None
        decision = await self._decider.decide(request)
        if decision is None:
            return None
        # LiteLLM tells a classifier nothing of the answer: budget and conversation go by what was decided.
        router = self._decider.router
        router.answered(request.conversation, decision.variant, router.spend(decision), None)
        return decision.variant
