"""`/v1/embeddings`: the last hidden state of a prompt at one λ, in OpenAI's form.

This is the state that the first token of an answer is chosen from, scaled to unit length. A request is one prefill. As
in vLLM, `messages` instead of `input` is a conversation, read through the chat template.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dami_merge.live import Completion, Engine, Generation
from dami_merge.live_server.engine_request import chat_tokens, fitting, prompts
from dami_merge.live_server.fields import BadFieldError, Fields
from dami_merge.live_server.known_fields import EMBEDDINGS
from dami_router.messages.pinning import pinned

__all__ = ["embeddings_reply", "read_embeddings"]


def read_embeddings(data: Mapping[str, Any], engine: Engine) -> list[Generation]:
    """Return the prompts to read; raises BadFieldError, MisuseError. Without a pinned λ, they are read at λ = 0."""
    fields = Fields(data)
    fields.accept(EMBEDDINGS)
    lambda_ = _lambda_of(fields, engine)
    if fields.has("messages"):
        asked = [chat_tokens(engine, fields, lambda_)]
    else:
        asked = prompts(engine, fields, "input", otherwise="; or send `messages`")
    return [
        Generation(fitting(engine, prompt), lambda_, max_new_tokens=1, hidden_state=True, ignore_eos=True)
        for prompt in asked
    ]


def embeddings_reply(asked: Sequence[Generation], answers: Sequence[Completion], model: str) -> dict[str, Any]:
    """Return the reply for JSON."""
    count = sum(len(generation.prompt) for generation in asked)
    data = [
        {"object": "embedding", "index": i, "embedding": _unit(answer.hidden_state or ())}
        for i, answer in enumerate(answers)
    ]
    return {
        "object": "list", "data": data, "model": model, "usage": {"prompt_tokens": count, "total_tokens": count},
    }  # fmt: skip


def _lambda_of(fields: Fields, engine: Engine) -> float:
    model = fields.data.get("model")
    lambda_ = pinned(model) if isinstance(model, str) else None
    if lambda_ is None and model not in (None, "dami", engine.name):
        raise BadFieldError("`model` must be `dami:0`, or `dami:` with another λ, for hidden states")
    return 0.0 if lambda_ is None else lambda_


def _unit(state: Sequence[float]) -> list[float]:
    length = math.sqrt(math.fsum(x * x for x in state))
    return [x / length for x in state] if 0 < length < math.inf else [0.0] * len(state)
