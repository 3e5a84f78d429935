"""Rewriting of requests: `dami` becomes the variant at its λ, and the decision is stored for response headers.

Plain functions on LiteLLM's plain data, testable without LiteLLM.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dami_router.choosing.budget import Entry
from dami_router.messages.request import Request
from dami_router.router import Decision
from litellm_dami.deciding import Decider
from litellm_dami.reading import request_of

__all__ = ["CALLS", "Rewriter"]

CALLS = frozenset(
    {"completion", "acompletion", "text_completion", "atext_completion", "responses", "aresponses"}
    | {"anthropic_messages", "aanthropic_messages"}
)
"""LiteLLM's call types for language models; other calls are not rewritten."""

_REMEMBERED = 4096


@dataclass
class _Decided:
    """A pending decision, with what its answer needs; holds no text."""

    decision: Decision
    conversation: bytes | None
    entry: Entry | None


class Rewriter:
    """Rewrites requests for `model` (and `model:0.5`, λ pinned) and remembers the decisions of the last 4096 calls."""

    def __init__(self, decider: Decider, model: str = "dami") -> None:
        self._decider, self._model = decider, model
        self._decided: OrderedDict[str, _Decided] = OrderedDict()

    async def before(self, data: dict[str, Any], call_type: str) -> None:
        """Decide for a request and replace its model by the variant's id; leave all other requests unchanged."""
        name = self._ours(data.get("model"))
        if name is None or call_type not in CALLS:
            return
        request = request_of(data, name)
        decision = await self._decider.decide(request)
        if decision is None:
            return
        data["model"] = decision.variant
        _show(data, decision)
        self._remember(data.get("litellm_call_id"), request, decision)

    def headers(self, data: Mapping[str, Any], answered: object = None) -> dict[str, str] | None:
        """Return the reply's headers, with the names that `dami serve` uses; None if there was no decision.

        `answered` is the LiteLLM model that answered, if known: LiteLLM may have used a fallback.
        """
        found = self._decided.get(str(data.get("litellm_call_id")))
        if found is None:
            return None
        return {
            "x-dami-lambda": f"{found.decision.lambda_:.4g}",
            "x-dami-variant": self._variant(answered, found.decision),
            "x-dami-estimator": found.decision.estimator,
            "x-dami-cause": found.decision.cause,
            "x-dami-route-ms": f"{found.decision.route_ms:.3f}",
        }

    def after(self, call_id: str, answered: object, tokens: object) -> None:
        """Record an answer once, for budget and conversation: its cost and its variant (`answered`)."""
        found = self._decided.get(call_id)
        if found is None:
            return
        variant = self._variant(answered, found.decision)
        cost = tokens if isinstance(tokens, int) else None
        self._decider.router.answered(found.conversation, variant, found.entry, cost)
        found.entry = None

    def _ours(self, model: object) -> str | None:
        """Return the router's name for one of our models: `dami`, `dami:0.5`; None for others."""
        if isinstance(model, str) and (model == self._model or model.startswith(f"{self._model}:")):
            return "dami" + model.removeprefix(self._model)
        return None

    def _variant(self, answered: object, decision: Decision) -> str:
        """Return the variant that answered: the decided one, unless LiteLLM reports another of ours."""
        known = {variant.id for variant in self._decider.config.variants}
        return answered if isinstance(answered, str) and answered in known else decision.variant

    def _remember(self, call_id: object, request: Request, decision: Decision) -> None:
        entry = self._decider.router.spend(decision) if request.model == "dami" else None
        if not isinstance(call_id, str):
            return
        self._decided[call_id] = _Decided(decision, request.conversation, entry)
        if len(self._decided) > _REMEMBERED:
            self._decided.popitem(last=False)


def _show(data: dict[str, Any], decision: Decision) -> None:
    """Store the decision where LiteLLM's spend logs and logging integrations read it."""
    held = data.get("litellm_metadata")
    if not isinstance(held, dict):
        held = data["metadata"] = data["metadata"] if isinstance(data.get("metadata"), dict) else {}
    shown = {key: value for key, value in decision.as_dict().items() if key != "order"}
    known = held.get("spend_logs_metadata")
    held["spend_logs_metadata"] = {**(known if isinstance(known, dict) else {}), "dami": shown}
