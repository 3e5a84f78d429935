"""How hard a request asks to think, in the words of every API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dami_router.estimators.effort import EFFORTS
from dami_router.messages.hints import EFFORT_WORDS, Hints
from dami_router.messages.request import BadRequestError, read_request


def effort(path: str, body: dict[str, Any], hints: Hints | None = None) -> str | None:
    shape = "anthropic" if path == "/v1/messages" else "openai"
    return read_request(path, shape, json.dumps(body).encode(), hints=hints or Hints()).effort  # type: ignore[arg-type]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_every_word_has_a_lambda_that_does_not_fall() -> None:
    """The estimator `effort` knows all words, and a word that asks for more gets at least as large a λ."""
    values = [EFFORTS[word] for word in EFFORT_WORDS]
    assert tuple(EFFORTS) == EFFORT_WORDS
    assert values == sorted(values)
    assert EFFORTS["xhigh"] == EFFORTS["max"] == EFFORTS["high"] == 1.0


CASES = [
    ("/v1/chat/completions", {"reasoning_effort": "low"}, "low"),
    ("/v1/chat/completions", {"reasoning_effort": "xhigh"}, "xhigh"),
    ("/v1/chat/completions", {"reasoning_effort": None}, None),
    ("/v1/chat/completions", {"reasoning": {"effort": "max"}}, "max"),
    ("/v1/chat/completions", {"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "low"),
    ("/v1/responses", {"input": "x", "reasoning": {"effort": "minimal"}}, "minimal"),
    ("/v1/chat/completions", {"chat_template_kwargs": {"enable_thinking": False}}, "none"),
    ("/v1/chat/completions", {"chat_template_kwargs": {"enable_thinking": True}}, "high"),
    ("/v1/chat/completions", {"chat_template_kwargs": {"enable_thinking": "no"}}, None),
    ("/v1/chat/completions", {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"}, "low"),
    ("/v1/messages", {"thinking": {"type": "disabled"}}, "none"),
    ("/v1/messages", {"thinking": {"type": "adaptive"}}, None),
    ("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
    ("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": 2049}}, "medium"),
    ("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": 8193}}, "high"),
    ("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": True}}, None),
    (
        "/v1/messages",
        {"thinking": {"type": "enabled", "budget_tokens": 9000}, "output_config": {"effort": "low"}},
        "low",
    ),
    ("/v1/chat/completions", {"thinking": {"type": "disabled"}}, None),
    ("/v1/chat/completions", {"messages": said("2+2? /no_think")}, None),
    ("/v1/chat/completions", {}, None),
]


@pytest.mark.parametrize(("path", "body", "expected"), CASES)
def test_a_hint_becomes_one_word(path: str, body: dict[str, Any], expected: str | None) -> None:
    """Each API's way of asking for more or less thinking, and which one decides where there are several."""
    assert effort(path, {"model": "dami", **body}) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2+2? /no_think", "none"), ("/think why?", "high"), ("/think 2+2 /no_think", "none"), ("a/no_think", None),
     ("/no_thinking", None), ("x\n/no_think\ny", "none")],
)  # fmt: skip
def test_qwen_s_switches_count_where_they_are_allowed(text: str, expected: str | None) -> None:
    """With `switches`, the last `/think` or `/no_think` that stands alone in the last user message decides."""
    messages = [*said("/think first"), {"role": "assistant", "content": "/no_think"}, *said(text)]
    assert effort("/v1/chat/completions", {"messages": messages}, Hints(switches=True)) == expected


def test_enable_thinking_can_be_left_to_the_server() -> None:
    """Without `enable_thinking`, the template's argument is no hint."""
    body = {"chat_template_kwargs": {"enable_thinking": False}}
    assert effort("/v1/chat/completions", body, Hints(enable_thinking=False)) is None


@pytest.mark.parametrize("word", ["hgih", "", 3, True, ["low"], {"effort": "low"}])
def test_an_unknown_word_is_refused_with_the_list(word: object) -> None:
    """A word that no API has is told with those that are known, and is not taken for a default."""
    with pytest.raises(BadRequestError, match="`reasoning_effort`: expected one of none, minimal, low, medium, high"):
        effort("/v1/chat/completions", {"reasoning_effort": word})
    with pytest.raises(BadRequestError, match=r"`reasoning\.effort`: expected one of"):
        effort("/v1/responses", {"reasoning": {"effort": word}})


def test_budgets_are_configured() -> None:
    """Where Anthropic's budgets turn into low and medium is configuration."""
    body = {"thinking": {"type": "enabled", "budget_tokens": 100}}
    assert effort("/v1/messages", body, Hints(low_budget=50, medium_budget=200)) == "medium"


def test_responses_and_messages_are_read_as_conversations() -> None:
    """The user's latest text, the instructions and earlier answers are found in each API's own form."""
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "2+2?"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "4"}]},
        {"role": "user", "content": "and 3+3?"},
    ]
    body = json.dumps({"model": "dami", "instructions": "be brief", "input": items}).encode()
    request = read_request("/v1/responses", "openai", body)
    assert (request.text, request.follow_up) == ("and 3+3?", True)
    assert [m["role"] for m in request.messages or ()] == ["system", "user", "assistant", "user"]
    plain = read_request("/v1/responses", "openai", b'{"model":"dami","input":"2+2?"}')
    assert (plain.text, plain.follow_up, plain.messages) == ("2+2?", False, [{"role": "user", "content": "2+2?"}])
    body = json.dumps({"system": "be brief", "messages": said("2+2?")}).encode()
    request = read_request("/v1/messages", "anthropic", body)
    assert [m["content"] for m in request.messages or ()] == ["be brief", "2+2?"]
