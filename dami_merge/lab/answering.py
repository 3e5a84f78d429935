"""Greedy answers to many queries in one process, with the evidence that a zero-shot estimator needs.

Queries are grouped by prompt length, so that no padding is needed; a finished query leaves its batch. Grading is in
``rolling_out``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dami_merge.lab.task import DIGITS, has_think_block
from dami_merge.lab.tiny_model import one_thread
from dami_merge.lab.tokenizer import BOS, EOS, TOKENS, encode

if TYPE_CHECKING:
    import torch
    from transformers import Cache, Qwen3ForCausalLM

__all__ = ["Answer", "answer", "probe"]

MAX_NEW_TOKENS = 160
"""More than the longest trained format needs at n = 10 (123), so that only runaway answers are cut off."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer to one query, with its confidence.

    ``tokens`` counts every token generated, ``<eos>`` included; ``logprobs`` has the natural log-probability of each.
    ``direct`` is the probability, in [0, 1], of the likeliest digit as the first token: the model's confidence in a
    direct answer. It is low if the model is unsure of the digit, or tends to think instead.
    """

    text: str
    tokens: int
    finish_reason: Literal["stop", "length"]
    logprobs: tuple[float, ...]
    direct: float

    @property
    def think(self) -> bool:
        """Whether a think block is present."""
        return has_think_block(self.text)

    @property
    def confidence(self) -> float:
        """exp of the mean log-probability over all generated tokens, in [0, 1]."""
        return math.exp(math.fsum(self.logprobs) / len(self.logprobs))


def answer(
    model: Qwen3ForCausalLM, queries: Sequence[str], *, max_new_tokens: int = MAX_NEW_TOKENS, batch: int = 256
) -> list[Answer]:
    """Answer each query greedily, in the given order, with at most ``max_new_tokens`` (≥ 1) tokens each.

    Raises ``ValueError`` for a limit or batch below 1.
    """
    if max_new_tokens < 1 or batch < 1:
        raise ValueError(f"max_new_tokens and batch must be at least 1, got {max_new_tokens} and {batch}")
    prompts = [encode(BOS + query) for query in queries]
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    answers: dict[int, Answer] = {}
    for rows in by_length.values():
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            answers.update(zip(part, _answer_batch(model, [prompts[i] for i in part], max_new_tokens), strict=True))
    return [answers[i] for i in range(len(queries))]


def probe(model: Qwen3ForCausalLM, queries: Sequence[str], *, tokens: int = 4) -> list[Answer]:
    """Return the first few tokens of a model's answer to each query: cheap evidence for routing, without labels."""
    return answer(model, queries, max_new_tokens=tokens)


def _answer_batch(model: Qwen3ForCausalLM, prompts: list[list[int]], limit: int) -> list[Answer]:
    """Return the answers to prompts of equal length."""
    import torch

    written: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    with one_thread(), torch.inference_mode():
        alive = torch.arange(len(prompts))
        log_p, cache = _next(model, torch.tensor(prompts), None)
        direct = log_p[:, encode(DIGITS)].amax(dim=-1).exp().tolist()
        for _ in range(limit):
            best, token = log_p.max(dim=-1)  # (alive,), (alive,)
            for row, t, p in zip(alive.tolist(), token.tolist(), best.tolist(), strict=True):
                written[row].append(t)
                logprobs[row].append(p)
            going = token != encode(EOS)[0]
            if len(written[int(alive[0])]) == limit or not going.any():
                break
            if not going.all():
                alive, token = alive[going], token[going]
                cache.batch_select_indices(going.nonzero().squeeze(1))
            log_p, cache = _next(model, token[:, None], cache)
    return [_answered(w, p, d) for w, p, d in zip(written, logprobs, direct, strict=True)]


def _next(model: Qwen3ForCausalLM, tokens: torch.Tensor, cache: Cache | None) -> tuple[torch.Tensor, Cache]:
    """Return log-probabilities (rows, 22) of the token after these (rows, columns), and the cache of all tokens."""
    out = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out.logits[:, -1].float().log_softmax(dim=-1), out.past_key_values


def _answered(ids: list[int], logprobs: list[float], direct: float) -> Answer:
    ended = ids[-1] == encode(EOS)[0]
    text = "".join(TOKENS[i] for i in (ids[:-1] if ended else ids))
    return Answer(text, len(ids), "stop" if ended else "length", tuple(logprobs), direct)
