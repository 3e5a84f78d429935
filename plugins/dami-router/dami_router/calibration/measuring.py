"""Measurement of many queries on the served endpoints: a few at a time, with retries."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from dami_router.calibration.probe_journal import Probed, ProbeJournal
from dami_router.estimators.calibrated import FORMS, Form
from dami_router.estimators.confidence import Choice, Confidence, ConfidenceScore, digest
from dami_router.estimators.log_probs import BusyError, EstimationError
from dami_router.estimators.query import Query
from dami_router.shared.tasks import all_of

__all__ = ["Collection", "collect", "forms_of", "key_of"]

_PAUSES = (0.2, 1.0, 5.0)
_EVERY_S = 10.0


@dataclass
class Collection:
    """The outcome of a run: how many queries it measured, and why others failed."""

    measured: int = 0
    failures: Counter[str] = field(default_factory=Counter)


def key_of(query: Query) -> str:
    """Return a query's digest as hexadecimal text; system messages count."""
    return digest(query, "calibration", 0).hex()


async def forms_of(estimator: Confidence, form: Choice, query: Query) -> tuple[Form, ...]:
    """Return the forms to measure: the configured one, or all that the servers support for one query.

    Raises BusyError if the servers do not answer.
    """
    if form != "auto":
        return (form,)
    found: list[Form] = []
    busy: BusyError | None = None
    for one in FORMS:
        try:
            await _patiently(replace(estimator, form=one, memo=None, cache=0), query)
        except BusyError as error:
            busy = error
        except EstimationError:
            continue
        else:
            found.append(one)
    if busy and not found:
        raise busy
    return tuple(found)


async def collect(
    estimator: Confidence, forms: Sequence[Form], queries: Sequence[Query], into: ProbeJournal, concurrency: int,
    say: Callable[[str], None],
) -> Collection:  # fmt: skip
    """Measure every query that is not in `into`, `concurrency` at a time.

    Stops where the servers answer none of twice as many queries in a row, each tried for several seconds.
    """
    each = {form: replace(estimator, form=form, memo=None, cache=0) for form in forms}
    distinct = {key_of(query): query for query in queries}
    work = list(reversed([(key, query) for key, query in distinct.items() if key not in into.done]))
    outcome, total, unanswered = Collection(), len(work), 0
    told = begun = time.monotonic()

    async def worker() -> None:
        nonlocal told, unanswered
        while work and unanswered < 2 * concurrency:
            key, query = work.pop()
            try:
                into.append(key, await _measured(each, query))
                outcome.measured, unanswered = outcome.measured + 1, 0
            except EstimationError as error:
                outcome.failures[error.message] += 1
                unanswered += isinstance(error, BusyError)
            if (now := time.monotonic()) - told >= _EVERY_S:
                told = now
                done = total - len(work)
                say(f"{done:,} of {total:,} queries; {done / (now - begun):.1f} per second")

    await all_of(worker() for _ in range(min(concurrency, total)))
    return outcome


async def _measured(each: dict[Form, Confidence], query: Query) -> Probed:
    """Measure a query in every form; each result includes Instruct's confidence."""
    scores: dict[Form, float] = {}
    tokens: dict[Form, float] = {}
    for form, estimator in each.items():
        if form not in scores:
            found = await _patiently(estimator, query)
            own = float(found.evidence["tokens"])
            scores |= {"instruct": float(found.evidence["confidence"]), form: found.score}
            tokens |= {"instruct": own, form: own + float(found.evidence.get("tokens_thinking", 0))}
    return Probed(scores, tokens)


async def _patiently(estimator: Confidence, query: Query) -> ConfidenceScore:
    for pause in _PAUSES:
        try:
            return await estimator.measure(query)
        except BusyError:
            await asyncio.sleep(pause)
    return await estimator.measure(query)
