"""How hard a request asks the model to think, in the words of whichever API it uses.

All of them become one word of `EFFORTS`, which the estimator `effort` turns into λ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["EFFORT_WORDS", "HintError", "Hints", "effort_of"]

EFFORT_WORDS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""The words for effort, from least to most."""

# Qwen3's soft switches, which stand alone in the last user message; the last one counts.
_SWITCH = re.compile(r"(?:^|(?<=\s))/(no_think|think)(?=\s|$)")


_PLACES = frozenset({"reasoning_effort", "reasoning", "output_config", "thinking", "chat_template_kwargs"})


class HintError(ValueError):
    """A hint that no API has; the message is for the client."""


@dataclass(frozen=True)
class Hints:
    """Which hints count. `enable_thinking`: `chat_template_kwargs`; `switches`: `/think` and `/no_think` in the text.

    Anthropic's `budget_tokens` of at most `low_budget` means `low`, at most `medium_budget` means `medium`, and more
    means `high`.
    """

    enable_thinking: bool = True
    switches: bool = False
    low_budget: int = 2048
    medium_budget: int = 8192


def effort_of(members: Mapping[str, Any], text: str, hints: Hints, *, anthropic: bool = False) -> str | None:
    """Return the effort that a request asks for, None where it asks for none; raises HintError for an unknown word.

    `members` are the body's, `text` the last user message. The first that is there decides: `reasoning_effort`,
    `reasoning.effort`, Anthropic's `output_config.effort` and `thinking`, `chat_template_kwargs.enable_thinking`, then
    the switches.
    """
    if _PLACES.isdisjoint(members) and not hints.switches:
        return None
    named = [(("reasoning_effort",), "`reasoning_effort`"), (("reasoning", "effort"), "`reasoning.effort`")]
    if anthropic:
        named.append((("output_config", "effort"), "`output_config.effort`"))
    for place, name in named:
        if (word := _at(members, place)) is not None:
            return _word(word, name)
    found = _anthropic(members.get("thinking"), hints) if anthropic else None
    if found is None and hints.enable_thinking:
        wanted = _at(members, ("chat_template_kwargs", "enable_thinking"))
        found = None if not isinstance(wanted, bool) else "high" if wanted else "none"
    if found is None and hints.switches:
        switches = _SWITCH.findall(text)
        found = None if not switches else "none" if switches[-1] == "no_think" else "high"
    return found


def _anthropic(thinking: object, hints: Hints) -> str | None:
    if not isinstance(thinking, Mapping):
        return None
    if thinking.get("type") == "disabled":
        return "none"
    budget = thinking.get("budget_tokens")
    if thinking.get("type") != "enabled" or isinstance(budget, bool) or not isinstance(budget, int | float):
        return None
    return "low" if budget <= hints.low_budget else "medium" if budget <= hints.medium_budget else "high"


def _word(word: object, name: str) -> str:
    if isinstance(word, str) and word in EFFORT_WORDS:
        return word
    raise HintError(f"{name}: expected one of {', '.join(EFFORT_WORDS)}, found {word!r:.60}")


def _at(members: Mapping[str, Any], place: Sequence[str]) -> object:
    found: object = members
    for key in place:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
