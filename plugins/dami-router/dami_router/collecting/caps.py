"""Whether a server limits thinking tokens: many ignore the field, and would pass off whole answers as capped ones."""

from __future__ import annotations

from collections.abc import Sequence

from dami_router.collecting.asking import RolloutTarget, UnusableError, ask
from dami_router.collecting.settings import CAP_FIELD, QuestionSettings
from dami_router.datasets import Question
from dami_router.errors import FailureError
from dami_router.messages.thinking import split_thinking
from dami_router.router import Router

__all__ = ["require_caps"]

_TRIES = 3
_LONGEST = 60
"""Characters; no token of a thought is longer, and a server that ignores a cap of one token writes more."""
_HINT = "dami live limits thinking tokens, and so does vLLM with --reasoning-config"


async def require_caps(
    router: Router, settings: QuestionSettings, work: Sequence[tuple[RolloutTarget, Question, int]]
) -> None:
    """Ask a few questions with a cap of one token, for each variant that is to be capped.

    Raises FailureError if a server refuses the field, or thinks on in spite of it.
    """
    by_variant: dict[str, list[tuple[RolloutTarget, Question, int]]] = {}
    for item in work:
        if item[0].cap is not None:
            by_variant.setdefault(item[0].model, []).append(item)
    for model, items in by_variant.items():
        for target, question, sample in items[:_TRIES]:
            try:
                found = await ask(router, target, settings.request(model, question, sample, cap=1))
            except UnusableError as error:
                if error.final and CAP_FIELD in error.why:
                    raise FailureError(f"{model}: refuses `{CAP_FIELD}`: {error.why}", hint=_HINT) from None
                continue  # the run itself retries and reports
            thoughts, _ = split_thinking(found.text, target.opens_think)
            if thoughts is not None and len(thoughts.strip()) > _LONGEST:
                raise FailureError(f"{model}: ignores `{CAP_FIELD}`: it thinks on after one token", hint=_HINT)
