"""The decision for one request: dami-router's estimators and policy, in LiteLLM's process.

Independent of LiteLLM. Every request gets a decision; after any failure it is the constant at the end
of the chain of estimators.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from dami_router.choosing.policy import nearest
from dami_router.config.router_yml import load_config
from dami_router.config.specs import RouterConfig
from dami_router.errors import DamiError, MisuseError
from dami_router.messages.request import Request
from dami_router.router import Decision, Router, UnknownModelError

__all__ = ["VARIABLE", "Decider", "Source", "router_file"]

VARIABLE = "DAMI_ROUTER"
Source = str | Path | RouterConfig
"""A router.yml, as a path or already parsed."""

_LOG = logging.getLogger(__name__)


def router_file() -> Path:
    """Return the path in DAMI_ROUTER; raises MisuseError if it is not set."""
    named = os.environ.get(VARIABLE, "").strip()
    if not named:
        raise MisuseError(
            f"the environment variable {VARIABLE} is not set: expected the path of a router.yml",
            hint=f"add `environment_variables: {{{VARIABLE}: /path/to/router.yml}}` to LiteLLM's config.yaml",
        )
    return Path(named)


class Decider:
    """Decides for one configuration.

    If it has `backends`, servers are checked in the background from the first decision until the event
    loop ends, and estimators may call them. Without `backends`, no server is called.
    """

    def __init__(self, source: Source) -> None:
        config = source if isinstance(source, RouterConfig) else load_config(Path(source), needs_backends=False)
        if any(backend.protocol == "live" for backend in config.backends):
            raise MisuseError(
                "router.yml has a live server: it answers at any λ, and LiteLLM has no model for each",
                hint="remove it here, or run `dami serve` with this file and add that as one LiteLLM model",
            )
        self.config = config
        self.router = Router(config)
        self._running: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    async def decide(self, request: Request) -> Decision | None:
        """Return the decision for a request; None if its model is not one of ours. Never raises."""
        try:
            await self._open()
            return await self.router.decide(request)
        except UnknownModelError:
            return None
        except Exception as error:
            # The message may contain the query.
            _LOG.warning("no estimate (%s): falling back to the constant", type(error).__name__)
            return self._constant()

    def _constant(self) -> Decision:
        """Return the decision of the constant at the chain's end, without any call."""
        lambda_ = self.config.estimator.last.lambda_
        wanted = nearest(lambda_, [variant.lambda_ for variant in self.config.variants])
        variant = next(v for v in self.config.variants if v.lambda_ == wanted)
        return Decision(lambda_, variant.id, "fixed", 0.0, (variant.id,))

    async def _open(self) -> None:
        if not self.config.backends:
            return
        if self._running is None or self._running.done():
            self._ready = asyncio.Event()
            self._running = asyncio.create_task(self._run(self._ready), name="litellm-dami")
        await self._ready.wait()

    async def _run(self, ready: asyncio.Event) -> None:
        """Keep the router open until the loop cancels its tasks: LiteLLM has no shutdown hook."""
        try:
            async with self.router:
                ready.set()
                await asyncio.Event().wait()
        except DamiError as error:
            _LOG.warning("servers cannot be called: %s (%s)", error.message, error.hint)
        except Exception as error:
            _LOG.warning("servers cannot be called: %s", type(error).__name__)
        finally:
            ready.set()
