"""What is asked of the engine for one sequence, and what comes back. Plain facts: nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dami_merge.interpolation.schedule import Schedule
from dami_router.errors import MisuseError

__all__ = ["MAX_TOP", "Choice", "Completion", "Event", "FinishReason", "Generation", "PromptToken", "Row"]

FinishReason = Literal["stop", "length", "error"]
"""Why a row ended: an end-of-text token or a stop string; its `max_new_tokens` or the engine's
`max_length`; or no memory was left for it."""

MAX_TOP = 20
_MAX_STOPS = 16
_MAX_STOP_LENGTH = 1000

Choice = tuple[int, float]
"""A token id and its log-probability."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What is asked for one sequence. Raises MisuseError, in one sentence, for what makes no sense.

    `prompt`: token ids, at least one. `lambda_`: a number in [0, 1], which the engine's path spreads over the
    layers; a schedule over depth such as `parse_lambda("ramp(0, 1)")`, which is itself λ for every layer; or
    None for what the engine's recipe says under `parameters: lambda`.

    `temperature` 0 is greedy, whatever the other sampling parameters say. Otherwise, in this order: logits
    over `temperature`, the `top_k` likeliest (0: all), of these the fewest whose probabilities reach `top_p`
    (1: all), and one drawn. With a `seed` a row draws the same numbers whatever shares its batch; without,
    different ones every time.

    `stop`: texts that end the answer and are not part of it. `ignore_eos`: write on after an end-of-text
    token. `skip_special_tokens`: leave special tokens out of `Event.text`.

    `log_probs`: natural log-probabilities of the tokens written; `top_log_probs`: of that many likeliest
    alternatives as well (0 to 20). `prompt_log_probs`: those of the prompt's own tokens, with that many
    alternatives each (None: off). All are the model's own: before temperature, top_k and top_p.
    """

    prompt: Sequence[int]
    lambda_: float | Schedule | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    log_probs: bool = False
    top_log_probs: int = 0
    prompt_log_probs: int | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise MisuseError("the prompt is empty; expected at least one token")
        if isinstance(self.lambda_, int | float) and not 0.0 <= self.lambda_ <= 1.0:
            raise MisuseError(f"λ: expected a number in [0, 1], found {self.lambda_:g}")
        _at_least("max_new_tokens", self.max_new_tokens, 1)
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise MisuseError(f"temperature: expected a number of at least 0, found {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise MisuseError(f"top_p: expected a number above 0 and at most 1, found {self.top_p:g}")
        _at_least("top_k", self.top_k, 0)
        _top("top_log_probs", self.top_log_probs)
        _top("prompt_log_probs", self.prompt_log_probs or 0)
        self._check_stops()

    def _check_stops(self) -> None:
        if len(self.stop) > _MAX_STOPS:
            raise MisuseError(f"stop: expected at most {_MAX_STOPS} texts, found {len(self.stop)}")
        if any(not 0 < len(text) <= _MAX_STOP_LENGTH for text in self.stop):
            raise MisuseError(f"stop: expected texts of 1 to {_MAX_STOP_LENGTH} characters")


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One sequence that an engine works on. Two rows are equal only if they are the same one."""

    id: int
    generation: Generation


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of the prompt; `log_prob` is None for the first, which nothing precedes."""

    token: int
    log_prob: float | None
    top: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """A row is one token on, or has ended.

    `text` is what can be shown by now: never half a character, and nothing that may turn out to begin a stop
    text; the rest comes with a later event. The last event of a row has a `finish_reason`. `token` is None only
    where it is `error`; an end-of-text token counts as a token and has no text. `log_prob` and `top` are
    there where they were asked for, `prompt_log_probs` on the first event of a row that asked.
    """

    row: Row
    token: int | None
    text: str = ""
    log_prob: float | None = None
    top: tuple[Choice, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_log_probs: tuple[PromptToken, ...] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer: its events put together."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    log_probs: tuple[float, ...] = ()
    top: tuple[tuple[Choice, ...], ...] = ()
    prompt_log_probs: tuple[PromptToken, ...] | None = None
    error: str | None = None


@dataclass(slots=True)
class CompletionBuilder:
    """Puts the events of one row together."""

    events: list[Event] = field(default_factory=list)

    def finished(self) -> Completion:
        """Return the answer; the last event must have come."""
        last = self.events[-1]
        assert last.finish_reason is not None
        written = [event for event in self.events if event.token is not None]
        return Completion(
            text="".join(event.text for event in self.events),
            tokens=tuple(event.token for event in written if event.token is not None),
            finish_reason=last.finish_reason,
            log_probs=tuple(event.log_prob for event in written if event.log_prob is not None),
            top=tuple(event.top for event in written if event.top),
            prompt_log_probs=self.events[0].prompt_log_probs,
            error=last.error,
        )


def _at_least(what: str, value: int, least: int) -> None:
    if value < least:
        raise MisuseError(f"{what}: expected a whole number of at least {least}, found {value}")


def _top(what: str, value: int) -> None:
    if not 0 <= value <= MAX_TOP:
        raise MisuseError(f"{what}: expected a whole number from 0 to {MAX_TOP}, found {value}")
