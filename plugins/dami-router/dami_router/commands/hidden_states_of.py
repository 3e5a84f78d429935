"""The encoder that `dami train` and `dami eval` are told to use.

With `--hidden ROUTER.yml`, the hidden states of all queries of a file of rollouts are read from a live server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from dami_router.errors import FailureError, MisuseError
from dami_router.estimators.embeddings import encoder_of
from dami_router.estimators.features import Encoder
from dami_router.estimators.hidden_encoder import HiddenEncoder
from dami_router.estimators.log_probs import EstimationError, HiddenState, Server
from dami_router.estimators.query import Query
from dami_router.rollouts.records import read_rollouts
from dami_router.router import Router
from dami_router.shared.tasks import all_of

__all__ = ["chosen_encoder"]

_AT_ONCE = 8
_TRIES = 3
_SECONDS = 60.0
_EVERY_S = 10.0


def chosen_encoder(
    embeddings: str | None, hidden: Path | None, rollouts: Path, note: Callable[[str], None]
) -> Encoder | None:
    """Return the encoder of `--embeddings` or `--hidden`, None for neither.

    Raises MisuseError for both, FailureError if a hidden state cannot be read.
    """
    if hidden is None:
        return encoder_of(embeddings)
    if embeddings is not None:
        raise MisuseError("--embeddings and --hidden are two encoders: give only one of the two")
    queries = _queries(rollouts)
    note(f"reading the hidden states of {len(queries):,} queries")
    return HiddenEncoder.of(asyncio.run(_read(hidden, queries, note)))


def _queries(rollouts: Path) -> dict[str, Query]:
    """Return the queries by text, with their system messages; raises MisuseError for a text with two of these."""
    found: dict[str, Query] = {}
    for row in read_rollouts(rollouts):
        messages = [{"role": "user", "content": row.query}]
        if row.system is not None:
            messages.insert(0, {"role": "system", "content": row.system})
        query = Query(row.query, messages=messages)
        if found.setdefault(row.query, query) != query:
            raise MisuseError(f"{rollouts}: `{row.query_id:.60}` has a text that occurs with another system message")
    if not found:
        raise MisuseError(f"{rollouts}: no rollouts")
    return found


async def _read(config: Path, queries: dict[str, Query], note: Callable[[str], None]) -> dict[str, HiddenState]:
    async with Router.from_file(config) as router:
        router.require_usable()
        if router.endpoints is None:
            raise MisuseError(f"{config}: has no backends")
        server = router.endpoints.instruct
        if server.can("hidden_states") is False:
            raise FailureError("no server gives hidden states", hint="dami live does; see docs/live.md")
        states: dict[str, HiddenState] = {}
        work = list(reversed(queries.items()))
        told = time.monotonic()

        async def worker() -> None:
            nonlocal told
            while work:
                text, query = work.pop()
                states[text] = await _patiently(server, query)
                if time.monotonic() - told >= _EVERY_S:
                    told = time.monotonic()
                    note(f"{len(states):,} of {len(queries):,} hidden states")

        await all_of(worker() for _ in range(min(_AT_ONCE, len(queries))))
    return states


async def _patiently(server: Server, query: Query) -> HiddenState:
    for left in range(_TRIES - 1, -1, -1):
        try:
            return await server.hidden(query, timeout=_SECONDS)
        except EstimationError:
            if not left:
                raise
            await asyncio.sleep(1.0)
    raise AssertionError("unreachable")
