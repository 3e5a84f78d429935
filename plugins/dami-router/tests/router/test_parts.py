"""The parts by themselves: reading requests, thoughts, tokens, estimators, the breaker."""

from __future__ import annotations

import asyncio
import json
import logging
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_router.errors import MisuseError
from dami_router.estimators.chain import Chain
from dami_router.estimators.effort import Effort
from dami_router.estimators.fixed import Fixed
from dami_router.estimators.log_probs import EstimationError
from dami_router.estimators.query import Estimate, Query
from dami_router.messages.request import BadRequestError, read_request
from dami_router.messages.thinking import CLOSE, OPEN, SplitEvents, Splitter, split_body, split_thinking
from dami_router.messages.tokens import TokenCount
from dami_router.upstream.breaker import Breaker

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
PATH = "/v1/chat/completions"


@given(
    st.dictionaries(st.text(), JSON, max_size=5),
    st.text(max_size=8) | st.none(),
    st.booleans(),
    st.sampled_from([None, 1, "\t"]),
)
def test_replacing_the_model_changes_nothing_else(
    members: dict[str, Any], model: str | None, escape: bool, indent: int | str | None
) -> None:
    """Whatever the body holds and however it is written, only the value of `model` differs afterwards."""
    data = {**members, **({"model": model} if model is not None else {})}
    if not isinstance(data.get("model"), str | None):
        del data["model"]
    body = json.dumps(data, ensure_ascii=escape, indent=indent).encode("utf-8", "replace")
    request = read_request(PATH, "openai", body)
    assert request.body_for(None) == body
    assert json.loads(request.body_for("λ")) == {**json.loads(body), "model": "λ"}


@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    """Bytes that are no JSON object are a BadRequestError, never another error."""
    try:
        read_request(PATH, "openai", body)
    except BadRequestError as error:
        assert str(error)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"{}x", b'{"a":1,}', b'{"a" 1}', b"{'a':1}", b'{"model":1}', b"\xff{}",
     b"\xef\xbb\xbf{}", b'{"a":' + b"9" * 5000 + b"}", b'{"a":1 "b":2}', b'{"a":1,,"b":2}',
     b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    """Truncated, trailing, nested too deep, not UTF-8: refused in one sentence that quotes nothing."""
    with pytest.raises(BadRequestError):
        read_request(PATH, "openai", body)


def test_a_model_given_twice_is_replaced_twice() -> None:
    """No reading of a doubled key may reach the server under another name."""
    request = read_request(PATH, "openai", b'{"model":"a","x":"\xc3\xa9","model":"b"}')
    assert request.model == "b"
    assert request.body_for("m") == b'{"model":"m","x":"\xc3\xa9","model":"m"}'


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "b"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]}, "a"),
        ({"messages": [{"role": "system", "content": "a"}]}, ""),
        ({"messages": "no"}, ""),
        ({"messages": [None, 3, {"role": "user"}]}, ""),
        ({"prompt": "a"}, "a"),
        ({"prompt": ["a", "b"]}, "a\nb"),
        ({"inputs": "a", "parameters": {}}, "a"),
        ({}, ""),
    ],
)
def test_the_query_is_what_the_user_asks_last(body: dict[str, Any], text: str) -> None:
    """Of chats the last user message, of completions the prompt, of TGI's requests the inputs; odd shapes are empty."""
    assert read_request(PATH, "openai", json.dumps(body).encode()).text == text


PIECES = st.lists(st.sampled_from([OPEN, CLOSE, "<", "<th", "</", "ink>", "\n", " ", "a", "λ"]), max_size=8)


@pytest.mark.parametrize(
    ("text", "opened", "thoughts", "answer"),
    [
        ("<think>a</think>\n\nb", False, "a", "b"),
        ("a</think>b", False, "a", "b"),
        ("a</think>b", True, "a", "b"),
        ("b", False, None, "b"),
        ("  <think>\na\n</think>b", False, "\na\n", "b"),
        ("<think>a", False, "a", ""),
        ("a", True, "a", ""),
        ("<think>a</think>b", True, "a", "b"),
        ("b <think>a</think>", False, "b <think>a", ""),
        ("<thin", False, None, "<thin"),
        ("", False, None, ""),
    ],
)
def test_thoughts_in_all_their_shapes(text: str, opened: bool, thoughts: str | None, answer: str) -> None:
    """`<think>…</think>…`, `…</think>…`, none; with and without a prompt that opens the block."""
    assert split_thinking(text, opened) == (thoughts, answer)


@given(PIECES, st.booleans(), st.lists(st.integers(0, 60), max_size=6))
def test_pieces_split_like_the_whole(pieces: list[str], opened: bool, cuts: list[int]) -> None:
    """Wherever a stream is cut, thoughts and answer are those of the whole text; no character is lost."""
    text = "".join(pieces)
    whole = Splitter(opened)
    parts = [whole.feed(text), whole.end()]
    edges = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    streamed = Splitter(opened)
    pieced = [streamed.feed(text[a:b]) for a, b in pairwise(edges)] + [streamed.end()]
    for side in (0, 1):
        assert "".join(p[side] for p in pieced) == "".join(p[side] for p in parts)
    if not streamed.thought:
        assert "".join(p[1] for p in pieced) == text


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_splitting_leaves_alone_what_is_no_chat(body: bytes) -> None:
    """Bodies and events of any other form pass through unchanged."""
    assert split_body(body, opened=False) == body or b"choices" in body
    assert SplitEvents(False)(b"data:" + body) == b"data:" + body or b"choices" in body


@pytest.mark.parametrize(
    ("chunks", "stream", "tokens"),
    [
        ([b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens": 12}}'], False, 12),
        ([b'{"generated_text":"x","details":{"generated_tokens":9,"tokens":[' + b"x" * 9000 + b"]}}"], False, 9),
        ([b'{"content":"\\"completion_tokens\\": 5"}'], False, None),
        ([b'data: {"a":1}\n\n', b'data: {"usage":{"compl', b'etion_tokens":44}}\n\n', b"data: [DONE]\n\n"], True, 44),
        ([b"data: 1\n\ndata: 2\n\n"], True, 2),
        ([b"nothing"], False, None),
    ],
)
def test_tokens_are_read_from_passing_bytes(chunks: list[bytes], stream: bool, tokens: int | None) -> None:
    """The server's own count, near either end and across chunks; else a stream's events; never one inside a text."""
    count = TokenCount(stream=stream)
    for chunk in chunks:
        count.feed(chunk)
    assert count.result() == tokens


class Odd:
    """An estimator that does what it is told."""

    def __init__(self, deed: str) -> None:
        self.name = self.deed = deed

    async def estimate(self, query: Query) -> Estimate:
        if self.deed == "slow":
            await asyncio.sleep(10)
        if self.deed == "crash":
            raise ZeroDivisionError("about " + query.text)
        if self.deed == "silent":
            raise EstimationError("nothing to say")
        if self.deed == "number":
            return 0.25  # type: ignore[return-value]
        return Estimate({"nan": float("nan"), "beyond": 1.5}.get(self.deed, 0.25), self.name)


@pytest.mark.parametrize("deed", ["slow", "crash", "silent", "nan", "beyond", "number"])
def test_a_chain_passes_over_who_cannot_answer(deed: str, caplog: pytest.LogCaptureFixture) -> None:
    """Slow, failing, silent and senseless estimators are passed over, and the log says it but has no query in it."""
    with caplog.at_level(logging.DEBUG):
        found = asyncio.run(Chain((Odd(deed), Odd("good")), Fixed(0.5), 0.05).estimate(Query("secret")))
        last = asyncio.run(Chain((Odd(deed),), Fixed(0.5), 0.05).estimate(Query("secret")))
    assert (found.lambda_, found.estimator, last.lambda_, last.estimator) == (0.25, "good", 0.5, "fixed")
    assert (deed in caplog.text, "secret" in caplog.text) == (deed != "silent", False)


def test_estimators_refuse_a_lambda_outside_the_unit_interval() -> None:
    """Constants and tables are checked where they are made."""
    with pytest.raises(MisuseError):
        Fixed(1.1)
    with pytest.raises(MisuseError):
        Effort({"high": 2.0})


def test_a_breaker_lets_one_trial_through() -> None:
    """Open, then half-open for one call at a time; a failed or abandoned trial changes what it must."""
    now = 0.0
    breaker = Breaker(2, 5.0, clock=lambda: now)
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.ready
    breaker.failed()
    assert (breaker.state, breaker.ready) == ("open", False)
    now = 5.0
    assert (breaker.state, breaker.ready) == ("half-open", True)
    breaker.start()
    assert not breaker.ready
    breaker.abandoned()
    assert breaker.ready
    breaker.start()
    breaker.failed()
    assert breaker.state == "open"
    now = 10.0
    breaker.start()
    breaker.succeeded()
    assert (breaker.state, breaker.ready) == ("closed", True)


def test_thoughts_that_the_server_has_separated_stay_as_they_are() -> None:
    """A parsed reply of a variant that opens `<think>` is not taken for thoughts alone, whole or in events."""
    whole = {"choices": [{"index": 0, "message": {"reasoning": "2+2 is 4", "content": "4"}}]}
    assert json.loads(split_body(json.dumps(whole).encode(), opened=True)) == whole
    split = SplitEvents(True)
    deltas = [{"role": "assistant", "content": ""}, {"reasoning": "2+2 is 4"}, {"content": "4"}, {"content": "."}]
    lines = [b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n" for delta in deltas]
    assert [split(line) for line in lines] == lines
