"""Calls that estimators make to the endpoints: the real `Servers`, over the router's fleet.

A call goes to the least busy healthy replica that is not known to lack the ability it needs. No user sent it:
no metric, budget or breaker of the router counts it. Replicas that keep failing such calls are skipped by
breakers of their own, so that they cost no time. An ability that a replica turns out to lack is noted in its identity.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from dami_router.backends.backend import Post
from dami_router.backends.hidden_state import hidden_state
from dami_router.backends.logprobs import LogProbs
from dami_router.backends.openai_logprobs import OpenAILogProbs
from dami_router.backends.tgi_logprobs import TgiLogProbs
from dami_router.config.router_schema import BreakerSpec
from dami_router.config.specs import RouterConfig
from dami_router.errors import FailureError
from dami_router.estimators.log_probs import (
    Ability,
    BusyError,
    EstimationError,
    HiddenState,
    Probe,
    Prompt,
    UnableError,
)
from dami_router.estimators.query import Query
from dami_router.upstream.breaker import Breaker
from dami_router.upstream.fleet import Fleet, Replica
from dami_router.upstream.health import Prober
from dami_router.upstream.live_bodies import data_at
from dami_router.upstream.reply import Calls, UnansweredError

__all__ = ["ServedEndpoint", "ServedEndpoints"]

_WAYS: Mapping[str, LogProbs] = {"tgi": TgiLogProbs(), "openai": OpenAILogProbs(), "live": OpenAILogProbs()}


class ServedEndpoint:
    """One endpoint of the family: the replicas of the variant at `lambda_`, and live servers, which have every λ."""

    def __init__(
        self, lambda_: float, replicas: Sequence[Replica], transport: Calls, prober: Prober, spec: BreakerSpec
    ) -> None:
        self.lambda_ = lambda_
        self._transport, self._prober, self._replicas = transport, prober, replicas
        self._breakers = {replica: Breaker(spec.failures, spec.open_s) for replica in replicas}

    @property
    def opens_think(self) -> bool:
        """Whether the variant's chat template ends inside a `<think>` block."""
        return any(replica.opens_think(self.lambda_) for replica in self._replicas)

    def can(self, ability: Ability) -> bool | None:
        """Return whether some replica has the ability; None where it is unknown."""
        known = [replica.can(ability) for replica in self._replicas]
        return True if True in known else None if None in known else False

    def require_alive(self, hint: str) -> None:
        """Raise FailureError with `hint` where every server of this endpoint is down."""
        if all(replica.health == "dead" for replica in self._replicas):
            lines = "\n".join(f"  {r.variant.id} at {r.spec.url}: {r.trouble}" for r in self._replicas)
            raise FailureError(f"no server at λ = {self.lambda_:g} answers:\n{lines}", hint=hint)

    async def probe(self, query: Query, tokens: int, *, top: int = 0, timeout: float) -> Probe:
        """Generate at most `tokens` tokens greedily."""
        async with self._ask("log_probs", timeout) as (replica, way, post):
            found = await way.probe(post, self._model(replica), query, tokens, top)
            if top and not all(token.top for token in found.tokens):
                _note(replica, "top_n")
            return found

    async def prepare(self, query: Query, *, close: bool = False, timeout: float) -> Prompt:
        """Return the query as the server would read it."""
        async with self._ask("prompt_log_probs", timeout) as (replica, way, post):
            return await way.prepare(post, self._model(replica), query, close=close)

    async def score(self, prompt: Prompt, text: str, *, timeout: float) -> tuple[float, ...]:
        """Return the log-probability of each token of `text` after the prompt."""
        async with self._ask("prompt_log_probs", timeout) as (replica, way, post):
            return await way.score(post, self._model(replica), prompt, text)

    async def hidden(self, query: Query, *, timeout: float) -> HiddenState:
        """Return the last hidden state of the query's prompt; only live servers give it."""
        async with self._ask("hidden_states", timeout) as (replica, _, post):
            if not replica.live:
                raise UnableError("the server is no live server", "hidden_states")
            return HiddenState(await hidden_state(post, self._model(replica), query), _endpoint_name(replica))

    @asynccontextmanager
    async def _ask(self, ability: Ability, timeout: float) -> AsyncIterator[tuple[Replica, LogProbs, Post]]:
        if timeout <= 0:
            raise BusyError("no time left")
        replica = self._pick(ability)
        breaker = self._breakers[replica]

        async def post(path: str, data: Mapping[str, Any]) -> tuple[int, Any]:
            try:
                asked = data_at(data, replica, self.lambda_)
                return await self._transport.post(replica, path, asked, timeout, fresh=False)
            except Exception as error:
                # Refused, cut off, not HTTP: the client raises many exceptions, and all mean the same here.
                raise UnansweredError(type(error).__name__) from error

        breaker.start()
        replica.outstanding += 1
        answers = False
        try:
            async with asyncio.timeout(timeout):
                yield replica, _WAYS[replica.spec.protocol], post
            answers = True
        except EstimationError as error:
            answers = True  # only this call failed
            if isinstance(error, UnableError):
                _note(replica, error.lacks)
            raise
        except (TimeoutError, UnansweredError):
            breaker.failed()
            raise BusyError(f"the server at λ = {self.lambda_:g} does not answer") from None
        except BaseException:
            breaker.abandoned()
            raise
        finally:
            replica.outstanding -= 1
            if answers:
                breaker.succeeded()

    def _model(self, replica: Replica) -> str:
        return replica.served_as(self.lambda_) or ""

    def _pick(self, ability: Ability) -> Replica:
        self._prober.explored.update(self._replicas)
        alive = [r for r in self._replicas if r.usable and r.health != "dead" and self._breakers[r].ready]
        able = [r for r in alive if r.can(ability) is not False]
        if not alive:
            raise BusyError(f"no server at λ = {self.lambda_:g} answers")
        if not able:
            raise EstimationError(f"no server at λ = {self.lambda_:g} supports {ability}")
        random.shuffle(able)
        return min(able, key=lambda replica: replica.outstanding)


class ServedEndpoints:
    """The smallest and the largest λ that is served; 0 and 1 with a live server. `thinking` is None for a single λ."""

    def __init__(self, config: RouterConfig, fleet: Fleet, transport: Calls, prober: Prober) -> None:
        served = {x for r in fleet.replicas for x in ((0.0, 1.0) if r.live else (r.variant.lambda_,))}

        def endpoint(lambda_: float) -> ServedEndpoint:
            replicas = [r for r in fleet.replicas if r.live or r.variant.lambda_ == lambda_]
            return ServedEndpoint(lambda_, replicas, transport, prober, config.breaker)

        self.instruct = endpoint(min(served))
        self.thinking = endpoint(max(served)) if len(served) > 1 else None


def _endpoint_name(replica: Replica) -> str:
    """Return the name and the commit of a live server's Instruct endpoint."""
    live = replica.identity.info.get("live") if replica.identity else None
    end = live.get("instruct") if isinstance(live, dict) else None
    name, commit = (end.get("name"), end.get("commit")) if isinstance(end, dict) else (None, None)
    return f"{name or 'instruct'}@{commit}" if commit else str(name or "instruct")


def _note(replica: Replica, lacks: Ability) -> None:
    if replica.identity is not None:
        able = {**replica.identity.capabilities, lacks: False}
        replica.identity = replace(replica.identity, capabilities=able)
