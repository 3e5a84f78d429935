"""A request to the engine for one sequence, and the reply. Plain data: nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Literal

from dami_merge.interpolation.schedule import Schedule
from dami_router.errors import MisuseError

__all__ = [
    "MAX_PENALTY",
    "MAX_TOP",
    "Choice",
    "Completion",
    "Event",
    "FinishReason",
    "Generation",
    "PromptToken",
    "Row",
]

FinishReason = Literal["stop", "length", "error"]
"""Why a row ended: an end-of-text token or a stop string (`stop`); its `max_new_tokens` or the engine's
`max_length` (`length`); memory ran out (`error`)."""

MAX_TOP = 20
MAX_PENALTY = 2.0
_MAX_STOPS = 16
_MAX_STOP_LENGTH = 1000

Choice = tuple[int, float]
"""A token id and its log-probability."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The request for one sequence. Raises MisuseError for an invalid setting.

    `prompt`: token ids, at least one. `lambda_`: a number in [0, 1], which the engine's path spreads over the
    layers; a schedule over depth such as `parse_lambda("ramp(0, 1)")`, which is itself λ for every layer; or
    None for the `parameters: lambda` of the engine's recipe.

    Penalties come first. `repetition_penalty` (above 0; 1: off) divides the logits of all tokens of the prompt and
    of the answer by it, or multiplies them where they are negative, as Transformers does. `frequency_penalty`
    times how often the answer holds a token, and `presence_penalty` where it holds it at all, are subtracted
    from its logit (-2 to 2; 0: off), as OpenAI defines them.

    `temperature` 0 is greedy, whatever the sampling parameters say. Otherwise, in Transformers' order: logits
    divided by `temperature`; the `top_k` likeliest tokens (0: all); of these the fewest whose probabilities reach
    `top_p` (1: all); those at least `min_p` times as likely as the likeliest (0: all); the most typical ones that
    together reach `typical_p` (1: all); and one drawn. With a `seed` a row draws the same numbers whatever
    shares its batch; without one, different numbers every time.

    `stop`: texts that end the answer and are not part of it. `ignore_eos`: continue after an end-of-text
    token. `skip_special_tokens`: leave special tokens out of `Event.text`.

    `thinking_token_budget`: close the `<think>` block after this many thinking tokens (None: no limit).

    `hidden_state`: also return the last hidden state of the prompt, which the first token is chosen from.

    `log_probs`: natural log-probabilities of the answer's tokens; `top_log_probs`: also of that many likeliest
    alternatives (0 to 20). `prompt_log_probs`: log-probabilities of the prompt's tokens, with that many
    alternatives each (None: off). All are the model's own: before penalties and temperature.
    """

    prompt: Sequence[int]
    lambda_: float | Schedule | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    thinking_token_budget: int | None = None
    log_probs: bool = False
    top_log_probs: int = 0
    prompt_log_probs: int | None = None
    hidden_state: bool = False

    def __post_init__(self) -> None:
        _check_tokens(self.prompt)
        _check_row_lambda(self.lambda_)
        check_whole("max_new_tokens", self.max_new_tokens, 1)
        _check_number("temperature", self.temperature, 0.0)
        _check_number("top_p", self.top_p, 0.0, 1.0, above=True)
        check_whole("top_k", self.top_k, 0)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("typical_p", self.typical_p, 0.0, 1.0, above=True)
        _check_number("repetition_penalty", self.repetition_penalty, 0.0, above=True)
        for what in ("presence_penalty", "frequency_penalty"):
            _check_number(what, getattr(self, what), -MAX_PENALTY, MAX_PENALTY)
        check_whole("top_log_probs", self.top_log_probs, 0, MAX_TOP)
        if self.thinking_token_budget is not None:
            check_whole("thinking_token_budget", self.thinking_token_budget, 0)
        if self.prompt_log_probs is not None:
            check_whole("prompt_log_probs", self.prompt_log_probs, 0, MAX_TOP)
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, Integral)):
            raise MisuseError(f"seed: expected a whole number, found {self.seed!r:.40}")
        for what in ("ignore_eos", "skip_special_tokens", "log_probs", "hidden_state"):
            if not isinstance(getattr(self, what), bool):
                raise MisuseError(f"{what}: expected True or False, found {getattr(self, what)!r:.40}")
        self._check_stops()

    def _check_stops(self) -> None:
        if isinstance(self.stop, str) or not isinstance(self.stop, Sequence):
            raise MisuseError(f"stop: expected a sequence of texts, found {self.stop!r:.40}")
        if len(self.stop) > _MAX_STOPS:
            raise MisuseError(f"stop: expected at most {_MAX_STOPS} texts, found {len(self.stop)}")
        if any(not isinstance(text, str) or not 0 < len(text) <= _MAX_STOP_LENGTH for text in self.stop):
            raise MisuseError(f"stop: expected texts of 1 to {_MAX_STOP_LENGTH} characters")

    @property
    def penalised(self) -> bool:
        """Whether the tokens so far change the logits of the next one."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """One sequence that an engine works on, compared by identity."""

    id: int
    generation: Generation


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of the prompt; `log_prob` is None for the first one, which has no predecessor."""

    token: int
    log_prob: float | None
    top: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """A row has received one token, or has ended.

    `text` is what can be shown so far: never half a character, and nothing that may turn out to begin a stop
    text; the rest comes with a later event. The last event of a row has a `finish_reason`. `token` is None only
    if that is `error`; an end-of-text token counts as a token and has no text. `log_prob` and `top` are set if
    they were requested, `prompt_log_probs` and `hidden_state` on the first event of a row that requested them.
    """

    row: Row
    token: int | None
    text: str = ""
    log_prob: float | None = None
    top: tuple[Choice, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_log_probs: tuple[PromptToken, ...] | None = None
    error: str | None = None
    hidden_state: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A complete answer: its events put together."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    log_probs: tuple[float, ...] = ()
    top: tuple[tuple[Choice, ...], ...] = ()
    prompt_log_probs: tuple[PromptToken, ...] | None = None
    error: str | None = None
    hidden_state: tuple[float, ...] | None = None


@dataclass(slots=True)
class CompletionBuilder:
    """Puts the events of one row together."""

    events: list[Event] = field(default_factory=list)

    def finished(self) -> Completion:
        """Return the answer, after the last event has arrived."""
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
            hidden_state=self.events[0].hidden_state,
        )


def check_whole(what: str, value: object, low: int, high: int | None = None) -> None:
    """Refuse anything but a whole number of at least `low`, and at most `high` where there is one."""
    fits = isinstance(value, Integral) and not isinstance(value, bool)
    if not (fits and low <= value and (high is None or value <= high)):  # type: ignore[operator]
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise MisuseError(f"{what}: expected a whole number {span}, found {value!r:.40}")


def _check_number(what: str, value: object, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Refuse anything but a finite number in [low, high], or with `above` in (low, high]."""
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and low <= number <= high and (number > low or not above)):
        least = f"{'above' if above else 'of at least'} {low:g}"
        span = least if high == math.inf else f"{least} and at most {high:g}"
        raise MisuseError(f"{what}: expected a number {span}, found {value!r:.40}")


def _check_tokens(prompt: object) -> None:
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        raise MisuseError(f"prompt: expected a sequence of token ids, found {type(prompt).__name__}")
    if not prompt:
        raise MisuseError("the prompt is empty; expected at least one token")
    kinds: set[type] = set(map(type, prompt))
    if bool in kinds or not all(issubclass(kind, Integral) for kind in kinds):
        raise MisuseError("prompt: expected token ids, whole numbers only")


def _check_row_lambda(lambda_: object) -> None:
    if lambda_ is None or hasattr(lambda_, "lambda_at"):
        return
    if isinstance(lambda_, bool) or not isinstance(lambda_, Real):
        raise MisuseError(f"λ: expected a number in [0, 1], a schedule or None, found {lambda_!r:.40}")
    if not 0.0 <= float(lambda_) <= 1.0:
        raise MisuseError(f"λ: expected a number in [0, 1], found {lambda_!r:.40}")
