"""The use case: estimate λ(q), choose a variant, send the query to it, and fall back where needed.

In process:

    async with Router.from_file("router.yml") as router:
        decision = await router.route("What is 17 · 23?")
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dami_router.choosing.budget import Budget, Entry
from dami_router.choosing.ordering import SAME_LAMBDA, Ordering, Wanted
from dami_router.choosing.outcome import Decision
from dami_router.config.model_names import model_names, unknown_model
from dami_router.config.router_yml import load_config
from dami_router.config.specs import RouterConfig, VariantSpec
from dami_router.errors import FailureError
from dami_router.estimators.chain import Chain
from dami_router.estimators.query import Estimate, Query
from dami_router.messages.pinning import LIVE, pinned
from dami_router.messages.request import Request, read_request
from dami_router.messages.routes import ROUTES
from dami_router.upstream.estimator_calls import ServedEndpoints
from dami_router.upstream.fleet import Fleet, Replica, Waiting
from dami_router.upstream.health import Prober
from dami_router.upstream.reply import Calls, Reply, StaleError, UnansweredError
from dami_router.upstream.transport import Transport
from dami_router.upstream.watchdog import Watchdog

__all__ = ["Answered", "Decision", "NoAnswerError", "NoVariantError", "Router", "UnknownModelError"]

_LOG = logging.getLogger(__name__)
# Model names that mean "choose for me". huggingface_hub's versions send `dummy` and `tgi`
# where no model is named.
_AUTO = frozenset({"dami", "dummy", "tgi", ""})
_CAPPED = frozenset({"/v1/chat/completions", "/v1/completions"})
"""The routes that have a field for the tokens of thinking."""
_PROTOCOLS = {path: route.protocols for path, route in ROUTES.items()}


class UnknownModelError(Exception):
    """The model name is neither a λ nor a variant with a server."""


class NoVariantError(Exception):
    """No variant is usable: every server that could answer is down, refused or serves another model."""


@dataclass
class NoAnswerError(Exception):
    """Every call for a request failed: the reason of the last one, and the number of calls."""

    last: UnansweredError
    attempts: int
    tried: tuple[str, ...]


@dataclass
class Answered:
    """A reply that has begun: its replica, its λ, and the number of calls. Must be closed."""

    reply: Reply
    replica: Replica
    lambda_: float
    attempts: int
    _closed: bool = False

    @property
    def variant(self) -> VariantSpec:
        """The variant that answers."""
        return self.replica.variant

    @property
    def name(self) -> str:
        """The model name that gets the same weights again."""
        return self.replica.name(self.lambda_)

    def close(self) -> None:
        """End the call; safe to repeat."""
        if not self._closed:
            self._closed = True
            self.replica.outstanding -= 1
            self.reply.close()


class Router:
    """Decides and sends, for one configuration. Use as an async context manager."""

    def __init__(self, config: RouterConfig, calls: Calls | None = None) -> None:
        self.config = config
        self.fleet = Fleet(config)
        self.transport: Calls = calls or Transport(config.timeouts)
        self.prober = Prober(self.fleet, self.transport, config.probe)
        # A server inside this process cannot hang alone.
        self.watchdog = (
            Watchdog(self.fleet, self.transport, config.probe, config.timeouts.first_byte) if not calls else None
        )
        # Without backends the router only decides, and estimators have no server to ask.
        self.endpoints = ServedEndpoints(config, self.fleet, self.transport, self.prober) if config.backends else None
        self.estimator = config.estimator.bind(self.endpoints) if self.endpoints else config.estimator
        self.on_failure = _ignore
        self._caps, self._affine = bool(config.thinking_caps), config.affinity.enabled
        policy = config.policy
        self.ordering = Ordering(
            {v.id: v.lambda_ for v in config.variants}, {v.id: v.figures for v in config.variants}, any_lambda=LIVE,
            rule=policy.rule, lambda_min=policy.lambda_min, sticky=policy.sticky, drop_dominated=policy.drop_dominated,
            budget=_budget(config),
        )  # fmt: skip

    @classmethod
    def from_file(cls, path: str | Path) -> Router:
        """Read a router.yml and make its router."""
        return cls(load_config(Path(path)))

    async def __aenter__(self) -> Router:
        await self.transport.open()
        if self.config.thinking_caps:
            self.prober.explored.update(self.fleet.replicas)
        await self.prober.start()
        if self.watchdog is not None:
            self.watchdog.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        if self.watchdog is not None:
            await self.watchdog.stop()
        await self.prober.stop()
        await self.transport.close()

    async def route(self, query: str, *, model: str = "dami", effort: str | None = None) -> Decision:
        """Decide on one query without sending it; changes no state."""
        body = {"model": model, "messages": [{"role": "user", "content": query}]}
        if effort is not None:
            body["reasoning_effort"] = effort
        return await self.decide(read_request("/v1/chat/completions", "openai", json.dumps(body).encode()))

    async def decide(self, request: Request, estimator: Chain | None = None) -> Decision:
        """Estimate λ(q) and choose; raises UnknownModelError, NoVariantError. Changes no state.

        `estimator` takes the place of the configuration's.
        """
        begun = time.perf_counter()
        model, effort = self._model(request)
        auto = model in _AUTO
        if auto and request.path in self.config.pass_through:
            return self._anywhere(request, begun)
        if model in self.ordering.lambdas:
            id = self.fleet.standing_for(model)
            if id is None:
                raise UnknownModelError(f"`{model}` has no server among the router's backends")
            return Decision(self.ordering.lambdas[model], id, "pinned", _ms(begun), (id,), "pinned")
        if auto:
            query = Query(request.text, effort, request.messages, request.prompt)
            estimate = await (estimator or self.estimator).estimate(query)
            if self.config.effort_shift:
                estimate = self._shifted(estimate, effort)
        else:
            estimate = self._pinned(model)
        policy = self.config.policy
        lambda_ = min(max(estimate.lambda_, policy.lambda_min), policy.lambda_max)
        offered, known = self._offered(request)
        # Digests of the request, computed only where the policy uses them.
        draw = request.draw if policy.rule == "dithered" else 0.0
        conversation, follow_up, tool_loop = None, False, False
        if policy.sticky:
            conversation, follow_up, tool_loop = request.conversation, request.follow_up, request.tool_loop
        wanted = Wanted(lambda_, auto, draw, conversation, follow_up, tool_loop, lambda_ != estimate.lambda_)
        bent, order, cause = self.ordering.order(wanted, offered, known)
        # Budget and conversation may change λ(q) for a live server: the evidence then holds the estimate too.
        evidence = dict(estimate.evidence)
        if abs(bent - lambda_) >= SAME_LAMBDA:
            evidence["wanted_lambda"] = round(lambda_, 6)
        why = cause if auto or cause != "estimator" else "pinned"
        return Decision(bent, order[0], estimate.estimator, _ms(begun), tuple(order), why, evidence)

    def _model(self, request: Request) -> tuple[str, str | None]:
        """Return the model that a request asks for and its effort: aliases and presets resolved, `dami` for none."""
        model = request.model or "dami"
        model = self.config.aliases.get(model, model)
        effort = None if model in _AUTO else self.config.preset(model)
        return ("dami", effort) if effort else (model, request.effort)

    def _anywhere(self, request: Request, begun: float) -> Decision:
        """Decide on a request to which all variants give the same answer: the smallest λ on offer comes first."""
        offered, known = self._offered(request)
        lambdas = self.ordering.lambdas
        order = tuple(sorted(known, key=lambda id: (id not in offered, lambdas.get(id, 0.0), id)))
        return Decision(lambdas.get(order[0], 0.0), order[0], "pass_through", _ms(begun), order, "pass_through")

    def _offered(self, request: Request) -> tuple[set[str], set[str]]:
        """Return the variants on offer for a request's route, and all that have it; raises NoVariantError for none."""
        protocols = _PROTOCOLS.get(request.path)
        offered = self.fleet.offered(protocols)
        if not offered:
            raise NoVariantError
        return offered, offered if len(offered) >= self.fleet.served else self.fleet.known(protocols)

    def _pinned(self, model: str) -> Estimate:
        """Return the λ that a model name pins; raises UnknownModelError."""
        lambda_ = pinned(model)
        if lambda_ is None:
            raise UnknownModelError(unknown_model(model, self.model_names()))
        return Estimate(lambda_, "pinned")

    def _shifted(self, found: Estimate, effort: str | None) -> Estimate:
        """Return an estimate moved by what router.yml says for a request's effort."""
        shift = self.config.effort_shift.get(effort or "", 0.0)
        if not shift or found.estimator == "effort":
            return found
        moved = min(max(found.lambda_ + shift, 0.0), 1.0)
        return Estimate(moved, found.estimator, {**found.evidence, "effort_shift": shift})

    def model_names(self) -> list[str]:
        """Return the names that clients may send, beside those that pin λ."""
        return model_names(self.config, [v.id for v in self.config.variants if self.fleet.standing_for(v.id)])

    def spend(self, decision: Decision) -> Entry | None:
        """Enter a decision into the online budget; None where there is none."""
        return self.ordering.spend(decision.variant, decision.lambda_)

    def answered(
        self, conversation: bytes | None, variant: str, entry: Entry | None, tokens: int | None, *,
        lambda_: float | None = None,
    ) -> None:  # fmt: skip
        """Note an answer, whether this router or another program sent the request.

        `conversation` is the request's; `lambda_` is given for an answer of a live server.
        """
        self.ordering.answered(conversation, variant, entry, tokens, lambda_)

    def ended(self, answered: Answered, *, whole: bool) -> None:
        """Note how a reply ended: a stream that broke off after its first byte is a failure of its replica.

        A whole reply was complete when it came, and has counted as a success since.
        """
        if not whole:
            self._failed(answered.replica, "the stream broke off")
        elif answered.reply.stream:
            answered.replica.breaker.succeeded()

    async def send(self, request: Request, decision: Decision) -> Answered:
        """Try the decision's variants in order until one begins to answer; raises NoAnswerError, NoVariantError.

        A connection that ends before any byte is retried once on a fresh one, and so is a server that failed where
        others share its address. An address is asked at most twice, and no other one once a first byte was seen.
        """
        tried: set[Replica] = set()
        attempts, again, last = 0, False, None
        protocols = _PROTOCOLS.get(request.path)
        key = partial(self._affinity, request) if self._affine else None
        replica = self.fleet.next(decision.order, tried, protocols, key)

        def elsewhere() -> bool:
            others = {*tried, replica} if replica is not None else tried
            return attempts < self.config.retries.attempts and bool(self.fleet.next(decision.order, others, protocols))

        while replica is not None and attempts < self.config.retries.attempts:
            attempts += 1
            try:
                reply = await self._call(replica, request, decision.lambda_, elsewhere, fresh=again)
                return Answered(reply, replica, decision.lambda_, attempts)
            except StaleError:
                again = True
                continue
            except UnansweredError as error:
                last = error
                self.on_failure(replica, error)
                again = not again and error.of_one_server and replica.spec.balanced and replica.usable
            if again:
                continue
            tried.add(replica)
            replica = self.fleet.next(decision.order, tried, protocols, key)
            if replica is not None:
                await asyncio.sleep(random.uniform(0, self.config.retries.backoff * 2 ** min(attempts - 1, 6)))  # noqa: S311
        if last is None:
            if replica is None:
                raise NoVariantError
            last = UnansweredError("disconnected")
        raise NoAnswerError(last, attempts, tuple(sorted({r.variant.id for r in tried})))

    async def _call(
        self, replica: Replica, request: Request, lambda_: float, elsewhere: Callable[[], bool], *, fresh: bool
    ) -> Reply:
        """Send, and wait for the first bytes; raises UnansweredError also where the replica is given up meanwhile."""
        breaker, task = replica.breaker, asyncio.current_task()
        assert task is not None
        call = Waiting(task, time.monotonic(), not request.stream, elsewhere)
        breaker.start()
        replica.outstanding += 1
        replica.waiting.add(call)
        try:
            sent = self._capped(request, replica, lambda_) if self._caps else request
            reply = await self.transport.send(replica, sent, lambda_, fresh=fresh)
        except BaseException as error:
            replica.outstanding -= 1
            if call.ended_by(error):
                error = UnansweredError("given_up")
            if isinstance(error, UnansweredError) and error.counts and not isinstance(error, StaleError):
                self._failed(replica, error.why)
            else:
                breaker.abandoned()
            raise error from None
        finally:
            replica.waiting.discard(call)
        replica.heard = time.monotonic()
        if reply.stream:
            breaker.began()
        else:
            breaker.succeeded()
        return reply

    def _capped(self, request: Request, replica: Replica, lambda_: float) -> Request:
        """Return the request with the most tokens that its answer may think, for servers that have such a limit."""
        if request.path not in _CAPPED or not replica.can("thinking_budget"):
            return request
        most = self.config.thinking_caps.of(replica.at(lambda_), self._model(request)[1])
        return request if most is None else request.adding("thinking_token_budget", most)

    def _affinity(self, request: Request) -> bytes | None:
        """Return what keeps a conversation on one replica: its session's name, else how it begins."""
        for name in self.config.affinity.headers:
            if session := request.headers.get(name):
                return hashlib.blake2b(session.encode(), digest_size=16).digest()
        return request.beginning

    def _failed(self, replica: Replica, why: str) -> None:
        was = replica.breaker.state
        replica.breaker.failed()
        if replica.breaker.state == "open" != was:
            _LOG.warning("%s at %s: breaker open after %s", replica.variant.id, replica.spec.url, why)

    def require_usable(self) -> None:
        """Raise FailureError where a server serves the wrong model."""
        wrong = [r for r in self.fleet.replicas if r.health == "wrong"]
        if wrong:
            lines = "\n".join(f"  {r.variant.id} at {r.spec.url}: {r.trouble}" for r in wrong)
            raise FailureError(
                f"a server does not serve the variant that router.yml names:\n{lines}",
                hint="correct `url` or `variant`; if the server uses another name for it, set that as `model`",
            )


def _budget(config: RouterConfig) -> Budget | None:
    spec = config.policy.budget
    if spec is None:
        return None
    if spec.unit == "lambda":
        return Budget.of_lambda(spec.mean, spec.window, {v.id: v.lambda_ for v in config.variants})
    return Budget("tokens", spec.mean, spec.window, dict(config.expected_tokens))


def _ms(begun: float) -> float:
    return (time.perf_counter() - begun) * 1e3


def _ignore(replica: Replica, error: UnansweredError) -> None:
    """The default for `on_failure`: failures are not counted."""
