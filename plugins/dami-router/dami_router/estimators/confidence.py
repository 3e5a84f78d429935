"""The zero-shot estimator: λ(q) from the confidence of the served endpoints in a direct answer, without training.

The Instruct endpoint answers greedily for a few tokens; their log-probabilities, and in two of the three forms the
Thinking endpoint's, give a score (see `measures`); a map fitted by `dami calibrate` turns it into λ. Where the model
itself opens a `<think>` block instead of answering, its confidence is zero: score 0.

Forms and degradation: `instruct` calls one endpoint, `discrepancy` and `entropy` call both. `auto` is the best form
that the servers support: discrepancy, else entropy, else the Instruct endpoint's confidence alone. A form set by name
is not replaced by another. If the form fails, the router falls back to its next estimator. All of this is ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

from dami_router.estimators.calibrated import FORMS, CalibratedMap, Form
from dami_router.estimators.log_probs import EstimationError, Probe, Server, Servers
from dami_router.estimators.measures import confidence, discrepancy, entropy, entropy_ratio
from dami_router.estimators.query import Estimate, Query
from dami_router.shared.memo import Memo

__all__ = ["CHOICES", "Choice", "Confidence", "ConfidenceScore", "digest"]

Choice = Literal["auto", "instruct", "discrepancy", "entropy"]
CHOICES: tuple[str, ...] = get_args(Choice)
_TOP = 5
"""Number of likeliest tokens to request: the most that TGI returns by default."""

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class ConfidenceScore:
    """A query's score in one form (≥ 0, higher means more confident), with everything that was measured."""

    form: Form
    score: float
    evidence: Mapping[str, float | str]


@dataclass(frozen=True)
class Confidence:
    """λ(q) from served log-probabilities.

    `tokens`: length of the probe. `map`: from score to λ; the default is λ = 1 − min(score, 1), a rule of ours.
    `timeout`: seconds for an estimate. `cache`: number of results to keep, by digest. `bind` sets `servers`.
    """

    form: Choice = "instruct"
    tokens: int = 16
    map: CalibratedMap | None = None
    timeout: float = 2.0
    cache: int = 10_000
    servers: Servers | None = field(default=None, repr=False)
    name: str = "confidence"
    memo: Memo[ConfidenceScore] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.memo is None:
            object.__setattr__(self, "memo", Memo(self.cache))  # copies share it

    def bind(self, servers: Servers) -> Confidence:
        """Return the estimator with these servers; they must support its form."""
        return replace(self, servers=servers)

    async def estimate(self, query: Query) -> Estimate:
        """Return λ(q) with form, score and measurements; raises EstimationError if nothing could be measured."""
        found = await self.measure(query)
        lambda_ = 1.0 - min(found.score, 1.0) if self.map is None else self.map(found.form, found.score)
        return Estimate(lambda_, self.name, {"form": found.form, "score": found.score, **found.evidence})

    async def measure(self, query: Query) -> ConfidenceScore:
        """Return a query's score, cached or new; concurrent calls for one query share one measurement."""
        forms = self._forms()
        key = digest(query, forms[0], self.tokens)
        assert self.memo is not None
        # A fallback form is not cached: the better form may be available again next time.
        return await self.memo.get(key, lambda: self._measure(query, forms), lambda found: found.form == forms[0])

    def _forms(self) -> tuple[Form, ...]:
        """The forms to try, best first: configured, in the map, and possibly supported by the servers."""
        if self.servers is None:
            raise EstimationError(f"{self.name}: has no servers")
        wanted = FORMS if self.form == "auto" else (self.form,)
        forms = tuple(form for form in wanted if (self.map is None or form in self.map.scores) and self._gives(form))
        if not forms:
            raise EstimationError(f"{self.name}: the servers do not support `form: {self.form}`")
        return forms

    def _gives(self, form: Form) -> bool:
        assert self.servers is not None
        instruct, thinking = self.servers.instruct, self.servers.thinking
        if instruct.can("log_probs") is False:
            return False
        if form == "instruct":
            return True
        if form == "discrepancy":
            return thinking is not None and thinking.can("prompt_log_probs") is not False
        return thinking is not None and False not in (instruct.can("top_n"), thinking.can("top_n"))

    async def _measure(self, query: Query, forms: tuple[Form, ...]) -> ConfidenceScore:
        assert self.servers is not None
        _refuse_empty(query)
        asking = _Asking(self.servers, query, self.tokens, asyncio.get_running_loop().time() + self.timeout)
        top = _TOP if "entropy" in forms else 0
        probe = asyncio.ensure_future(asking.probe(self.servers.instruct, top))
        try:
            for form in forms:
                try:
                    return await asking.measure(form, probe)
                except EstimationError:
                    if form == forms[-1] or (probe.done() and (probe.cancelled() or probe.exception())):
                        raise
        finally:
            probe.cancel()
        raise AssertionError("unreachable")


@dataclass(frozen=True)
class _Asking:
    """The measurement of one query, until `end` (in the loop's time)."""

    servers: Servers
    query: Query
    tokens: int
    end: float

    @property
    def left(self) -> float:
        return self.end - asyncio.get_running_loop().time()

    async def measure(self, form: Form, probe: asyncio.Future[Probe]) -> ConfidenceScore:
        forms: Mapping[Form, Callable[[asyncio.Future[Probe]], Awaitable[ConfidenceScore]]]
        forms = {"instruct": self._instruct, "discrepancy": self._discrepancy, "entropy": self._entropy}
        return await forms[form](probe)

    async def probe(self, server: Server, top: int) -> Probe:
        return await server.probe(self.query, self.tokens, top=top, timeout=self.left)

    async def _instruct(self, probe: asyncio.Future[Probe]) -> ConfidenceScore:
        found = await probe
        return _unsure("instruct", found) or _measured("instruct", confidence(found), found)

    async def _discrepancy(self, probe: asyncio.Future[Probe]) -> ConfidenceScore:
        thinking, instruct = self._thinking(), self.servers.instruct
        close = thinking.opens_think and not instruct.opens_think
        prompt, found = await _both(thinking.prepare(self.query, close=close, timeout=self.left), probe)
        if unsure := _unsure("discrepancy", found):
            return unsure
        apart = discrepancy(found, await thinking.score(prompt, found.text, timeout=self.left))
        return _measured("discrepancy", math.exp(min(-apart, 300.0)), found, {"discrepancy": apart})

    async def _entropy(self, probe: asyncio.Future[Probe]) -> ConfidenceScore:
        other, found = await _both(self.probe(self._thinking(), _TOP), probe)
        if unsure := _unsure("entropy", found):
            return unsure
        own, others = entropy(found), entropy(other)
        ratio = entropy_ratio(own, others)
        more = {"entropy_instruct": own, "entropy_thinking": others, "entropy_ratio": ratio}
        more["tokens_thinking"] = len(other.tokens)
        return _measured("entropy", 1.0 - ratio, found, more)

    def _thinking(self) -> Server:
        if self.servers.thinking is None:
            raise EstimationError("there is only one variant")
        return self.servers.thinking


def digest(query: Query, form: str, tokens: int) -> bytes:
    """Return a key for a query, in memory and on disk: a digest, equal for equal texts."""
    asked = query.prompt if query.prompt is not None else query.chat()
    text = json.dumps([form, tokens, query.prompt is None, asked], sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _refuse_empty(query: Query) -> None:
    if not (query.text.strip() if query.prompt is None else query.prompt.strip()):
        raise EstimationError("the query has no text")


def _unsure(form: Form, probe: Probe) -> ConfidenceScore | None:
    if not probe.thinks:
        return None
    return ConfidenceScore(form, 0.0, {"confidence": 0.0, "tokens": len(probe.tokens), "thinks": "yes"})


def _measured(form: Form, score: float, probe: Probe, more: Mapping[str, float] | None = None) -> ConfidenceScore:
    return ConfidenceScore(form, score, {"confidence": confidence(probe), "tokens": len(probe.tokens), **(more or {})})


async def _both(first: Awaitable[A], probe: asyncio.Future[B]) -> tuple[A, B]:
    """Wait for both; the first failure ends the wait and cancels the other call, but never the probe."""
    task = asyncio.ensure_future(first)
    try:
        pair: list[asyncio.Future[Any]] = [task, probe]
        await asyncio.wait(pair, return_when=asyncio.FIRST_EXCEPTION)
        if probe.done():
            probe.result()
        return await task, probe.result()
    finally:
        if not task.cancel() and not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it as never retrieved
