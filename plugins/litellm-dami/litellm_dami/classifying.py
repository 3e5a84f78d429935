"""A `ClassifierPlugin` for LiteLLM's `auto_router/complexity_router`: the tier is the variant of λ(q).

LiteLLM only needs an object with `async classify(context)`, so this module does not import LiteLLM.
"""

from __future__ import annotations

from typing import Any, Protocol

from litellm_dami.deciding import Decider, Source
from litellm_dami.reading import request_of

__all__ = ["Context", "DamiClassifier"]


class Context(Protocol):
    """The part of LiteLLM's `RoutingContext` that is read: the messages in OpenAI's form."""

    structured_messages: list[dict[str, Any]]


class DamiClassifier:
    """Returns the variant at each request's λ(q); the tiers must have the names of the variants in router.yml.

    LiteLLM passes only the messages to a classifier, so `reasoning_effort` has no effect.
    """

    def __init__(self, router: Source) -> None:
        self._decider = Decider(router)

    def __deepcopy__(self, memo: dict[int, object]) -> DamiClassifier:
        """Return itself: LiteLLM copies its configuration, which holds this object, and copies share its state."""
        return self

    async def classify(self, context: Context) -> str | None:
        """Return the variant's id; None (LiteLLM's own fallback decides) for a request without text."""
        request = request_of({"messages": context.structured_messages}, "dami")
        if not request.text:
            return None
        decision = await self._decider.decide(request)
        if decision is None:
            return None
        # A classifier never sees the answer, so budget and conversation use the decision.
        router = self._decider.router
        router.answered(request.conversation, decision.variant, router.spend(decision), None)
        return decision.variant
