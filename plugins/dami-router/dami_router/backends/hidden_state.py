"""How to ask a live server for a query's hidden state: `/v1/embeddings`, with a conversation as in vLLM."""

from __future__ import annotations

import math

from dami_router.backends.backend import Post
from dami_router.backends.logprobs import asked, at
from dami_router.estimators.log_probs import EstimationError, UnableError
from dami_router.estimators.query import Query

__all__ = ["hidden_state"]

_MOST = 1 << 16


async def hidden_state(post: Post, model: str, query: Query) -> tuple[float, ...]:
    """Return the vector; raises EstimationError if the reply is not one, UnableError if there is none."""
    what = {"messages": query.chat()} if query.prompt is None else {"input": query.prompt}
    vector = at(await asked(post, "/v1/embeddings", {"model": model, **what}), "data", 0, "embedding")
    if not isinstance(vector, list) or not 0 < len(vector) <= _MOST:
        raise UnableError("the server returned no hidden state", "hidden_states")
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in vector):
        raise EstimationError("the server returned a hidden state that is not of finite numbers")
    return tuple(map(float, vector))
