"""Settings of a run: everything that, if changed, would give other rollouts for the same queries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dami_router.datasets import Question
from dami_router.errors import MisuseError

__all__ = ["CAP_FIELD", "QuestionSettings"]

_PLACE = "{query}"
CAP_FIELD = "thinking_token_budget"
_OURS = ("model", "messages", "stream", "n", "max_tokens", "temperature", "seed", CAP_FIELD)
_OPTIONS = {"max_tokens": "--max-tokens", "temperature": "--temperature", "seed": "--seed", CAP_FIELD: "--caps"}


@dataclass(frozen=True)
class QuestionSettings:
    """The request for each question: `template` has `{query}` in place of the question.

    If `max_tokens` or `seed` is None, the server decides. `body` has additional fields of each request, such
    as `top_p`. `pair` names the endpoints behind a live server, whose answers differ only in λ.
    Raises MisuseError if these contradict each other.
    """

    grade: str
    template: str = _PLACE
    system: str | None = None
    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    keep_thoughts: bool = False
    pair: str | None = None

    def __post_init__(self) -> None:
        if _PLACE not in self.template:
            raise MisuseError(f"--template has no {_PLACE}", hint=f"such as '{_PLACE} Answer with a number.'")
        for name in _OURS:
            if name in self.body:
                hint = f"use {_OPTIONS[name]}" if name in _OPTIONS else None
                raise MisuseError(f"--body must not set `{name}`", hint=hint)

    def request(self, model: str, question: Question, sample: int, cap: int | None = None) -> dict[str, Any]:
        """Return the body of a chat completion; each sample of a question gets its own seed.

        `cap` limits the thinking tokens, by the field that vLLM has for it.
        """
        system = question.system or self.system
        messages = [{"role": "system", "content": system}] if system else []
        asked = self.template.replace(_PLACE, question.text)
        body: dict[str, Any] = {"model": model, "messages": [*messages, {"role": "user", "content": asked}]}
        body |= {"temperature": self.temperature}
        body |= {"max_tokens": self.max_tokens} if self.max_tokens is not None else {}
        body |= {"seed": self.seed + sample} if self.seed is not None else {}
        body |= {CAP_FIELD: cap} if cap is not None else {}
        return {**body, **self.body}

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as stored beside the rollouts."""
        return {**asdict(self), "body": dict(self.body)}

    def differences(self, known: object) -> list[str]:
        """Return the names of settings that differ from stored ones; `pair` counts only if both have it."""
        now = json.loads(json.dumps(self.as_dict()))
        if not isinstance(known, dict) or known.keys() != now.keys():
            return ["unknown settings"]
        other = [name for name in now if now[name] != known[name]]
        return [name for name in other if name != "pair" or None not in (now[name], known[name])]
