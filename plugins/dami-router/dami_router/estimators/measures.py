"""From log-probabilities to the endpoints' confidence in a direct answer; the forms are ours.

All scores are at least 0; higher means more confident, and a lower λ.

- own confidence: c = exp(mean log p) of the Instruct model's tokens, in (0, 1];
- discrepancy: D = mean(log p_I − log p_T) over the tokens of the Instruct model's answer, p_T the Thinking model's
  probability of them; the score is e^{−D}, the ratio of their likelihoods under the two models;
- entropies: r = e^{−H_T}/(e^{−H_I} + e^{−H_T}), H the mean entropy of each model's own first tokens, the ratio that
  weighs models in DaWin (arXiv 2410.03782); the score is 1 − r.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from dami_router.estimators.log_probs import EstimationError, Probe, UnableError

__all__ = ["confidence", "discrepancy", "entropy", "entropy_ratio"]


def confidence(probe: Probe) -> float:
    """Return exp of the mean log-probability over all tokens of a probe, in (0, 1]."""
    return math.exp(math.fsum(token.logprob for token in probe.tokens) / len(probe.tokens))


def discrepancy(probe: Probe, other: Sequence[float]) -> float:
    """Return D: the answer's mean log-probability under its own model minus that under another model; any sign.

    Both are sums over the same text divided by the number of the probe's tokens, so that D also holds if the other
    server splits the text into another number of tokens.
    """
    if not other:
        raise EstimationError("no token of the answer was scored")
    own = [token.logprob for token in probe.tokens[: probe.spoken]]
    return (math.fsum(own) - math.fsum(other)) / len(own)


def entropy(probe: Probe) -> float:
    """Return the mean entropy of a probe's next-token distributions, in nats.

    Only the likeliest tokens of each distribution are known; the rest counts as one outcome, so this is a lower bound.
    Raises UnableError if none are known.
    """
    if not all(len(token.top) > 1 for token in probe.tokens):
        raise UnableError("the server returns no likeliest tokens", "top_n")
    return math.fsum(_entropy(map(math.exp, token.top)) for token in probe.tokens) / len(probe.tokens)


def _entropy(probabilities: Iterable[float]) -> float:
    known = list(probabilities)
    rest = 1.0 - math.fsum(known)
    return math.fsum(-p * math.log(p) for p in (*known, rest) if p > 0.0)


def entropy_ratio(instruct: float, thinking: float) -> float:
    """Return e^{−H_T}/(e^{−H_I} + e^{−H_T}) in (0, 1): the Thinking model's weight."""
    return 1.0 / (1.0 + math.exp(min(thinking - instruct, 700.0)))
