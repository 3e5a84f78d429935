"""Decide a share of the requests a second time, with other estimators, and count what that would have changed.

Nothing is sent for it but what its estimators ask of servers, and no request waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress

from dami_router.config.specs import Shadow
from dami_router.messages.request import Request
from dami_router.proxy.metrics import Metrics
from dami_router.router import Decision, NoVariantError, Router, UnknownModelError

__all__ = ["Shadowing"]

_LOG = logging.getLogger(__name__)
_MOST = 16
"""Second decisions at a time; requests beyond are not counted."""


class Shadowing:
    """Second decisions of one proxy, in the background."""

    def __init__(self, router: Router, spec: Shadow, metrics: Metrics) -> None:
        self._router, self._share, self._metrics = router, spec.share, metrics
        self._estimator = spec.estimator.bind(router.endpoints) if router.endpoints else spec.estimator
        self._tasks: set[asyncio.Task[None]] = set()

    def consider(self, request: Request, decision: Decision) -> None:
        """Decide again, for a share of the requests of which λ was estimated."""
        if decision.cause in ("pinned", "pass_through") or len(self._tasks) >= _MOST:
            return
        if random.random() < self._share:  # noqa: S311
            task = asyncio.create_task(self._decide(request, decision), name="dami-shadow")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """End the decisions under way."""
        for task in list(self._tasks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _decide(self, request: Request, decision: Decision) -> None:
        try:
            self._metrics.shadowed(decision, await self._router.decide(request, self._estimator))
        except (NoVariantError, UnknownModelError):
            pass  # servers went down meanwhile
        except Exception as error:
            _LOG.warning("the shadow's decision failed: %s", type(error).__name__)
