"""One generation from decision to last byte, with everything that is counted along the way."""

from __future__ import annotations

import time

from dami_router.choosing.budget import Entry
from dami_router.messages.pinning import shown
from dami_router.messages.request import Request
from dami_router.messages.thinking import SplitEvents, split_body
from dami_router.messages.tokens import TokenCount
from dami_router.proxy.metrics import Metrics
from dami_router.proxy.relay import Rewrite, relay, reply_headers
from dami_router.proxy.shadow import Shadowing
from dami_router.proxy.wire import HttpError, Send
from dami_router.router import Answered, Decision, NoAnswerError, NoVariantError, Router, UnknownModelError

__all__ = ["Exchange"]


class Exchange:
    """A request in progress; `done` once nothing is left to cancel."""

    def __init__(
        self, router: Router, metrics: Metrics, request: Request, began: float, *, split: bool,
        shadow: Shadowing | None = None,
    ) -> None:  # fmt: skip
        self._router, self._metrics, self._request, self._began = router, metrics, request, began
        self._split, self._shadow = split, shadow
        self.done = False

    async def run(self, send: Send) -> None:
        """Decide, send, relay; raises HttpError where no server begins to answer."""
        decision = await self._decide()
        entry = self._router.spend(decision)
        asked = time.perf_counter()
        try:
            answered = await self._router.send(self._request, decision)
        except NoAnswerError as error:
            self._count(decision.variant, 429 if error.last.status == 429 else 502, None)
            raise _unanswered(error, decision) from None
        except NoVariantError:
            raise _nobody(decision) from None
        self._metrics.began(decision.variant, answered.variant.id, time.perf_counter() - asked)
        try:
            await self._relay(send, answered, decision, entry)
        finally:
            answered.close()

    async def _decide(self) -> Decision:
        try:
            decision = await self._router.decide(self._request)
        except UnknownModelError as error:
            self._count("none", 404, None)
            raise HttpError(404, str(error), code="model_not_found") from None
        except NoVariantError:
            self._count("none", 503, None)
            raise _nobody(None) from None
        self._metrics.decided(decision.lambda_, decision.route_ms / 1e3)
        if self._shadow is not None:
            self._shadow.consider(self._request, decision)
        return decision

    async def _relay(self, send: Send, answered: Answered, decision: Decision, entry: Entry | None) -> None:
        reply, variant = answered.reply, answered.variant
        tokens = TokenCount(stream=reply.stream)
        headers = reply_headers(reply, _ours(decision, answered))
        shape = self._request.shape
        whole = await relay(send, reply, headers, shape, tokens, self._rewrite(answered))
        self.done = True
        self._router.ended(answered, whole=whole)
        if not whole:
            self._metrics.broken(variant.id)
        count = tokens.result() if reply.status == 200 else None
        conversation = self._request.conversation if self._router.config.policy.sticky else None
        self._router.answered(conversation, variant.id, entry, count, lambda_=answered.replica.at(answered.lambda_))
        self._count(variant.id, reply.status, count)

    def _rewrite(self, answered: Answered) -> Rewrite | None:
        if not self._split or self._request.path != "/v1/chat/completions":
            return None
        opened = answered.replica.opens_think(answered.lambda_)
        return SplitEvents(opened) if answered.reply.stream else lambda body: split_body(body, opened)

    def _count(self, variant: str, status: int, tokens: int | None) -> None:
        self._metrics.finished(self._request.path, variant, status, time.perf_counter() - self._began, tokens)


def _ours(decision: Decision, answered: Answered) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-dami-lambda", shown(decision.lambda_).encode()),
        (b"x-dami-variant", answered.name.encode()),
        (b"x-dami-estimator", decision.estimator.encode()),
        (b"x-dami-cause", (decision.cause if answered.variant.id == decision.variant else "fallback").encode()),
        (b"x-dami-route-ms", b"%.3f" % decision.route_ms),
        (b"x-dami-attempts", b"%d" % answered.attempts),
    ]


def _unanswered(error: NoAnswerError, decision: Decision) -> HttpError:
    ours = [(b"x-dami-variant", decision.name().encode()), (b"x-dami-attempts", b"%d" % error.attempts)]
    if error.last.status == 429:
        after = error.last.retry_after or "1"
        ours.append((b"retry-after", after.encode("ascii", "replace")[:40]))
        return HttpError(429, "every server that could answer is overloaded", code="overloaded", headers=ours)
    calls = f"{error.attempts} call{'s' if error.attempts > 1 else ''}"
    asked = ", ".join(error.tried) or decision.name()
    message = f"no server answered after {calls} to {asked}; the last: {error.last.words}"
    return HttpError(502, message, code="upstream_failed", headers=ours)


def _nobody(decision: Decision | None) -> HttpError:
    what = "that can take this request" if decision is None else f"of {', '.join(decision.order)}"
    return HttpError(503, f"no server {what} is usable now", code="no_variant", headers=[(b"retry-after", b"1")])
