"""From a server's reply to the client: headers, whole events, an honest end; and requests read from ASGI."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_router.messages.tokens import TokenCount
from dami_router.proxy.bodies import read_body
from dami_router.proxy.relay import relay, reply_headers
from dami_router.proxy.wire import (
    ClientGoneError,
    HttpError,
    error_body,
    error_event,
    header,
    send_json,
    send_whole,
)
from dami_router.upstream.reply import BrokenError

HEADERS = [(b"content-type", b"text/event-stream")]
MIB = 1 << 20


@dataclass
class Scripted:
    """A server's reply: its first bytes, what follows, and whether it breaks off then."""

    first: bytes
    later: Sequence[bytes] = ()
    breaks: bool = False
    stream: bool = True
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = field(default_factory=lambda: list(HEADERS))

    async def rest(self) -> AsyncIterator[bytes]:
        for piece in self.later:
            yield piece
        if self.breaks:
            raise BrokenError("broke off")

    def close(self) -> None:
        """Nothing is held."""


@dataclass
class Client:
    """What a client received by ASGI."""

    messages: list[Any] = field(default_factory=list)

    async def send(self, message: Any) -> None:
        self.messages.append(dict(message))

    @property
    def bodies(self) -> list[bytes]:
        return [m["body"] for m in self.messages[1:]]

    @property
    def body(self) -> bytes:
        return b"".join(self.bodies)


def relayed(
    reply: Scripted, shape: Any = "openai", rewrite: Callable[[bytes], bytes] | None = None
) -> tuple[Client, bool, int | None]:
    """Relay a reply; return what the client got, whether it was whole, and the tokens that were counted."""
    client, tokens = Client(), TokenCount(stream=reply.stream)
    whole = asyncio.run(relay(client.send, reply, HEADERS, shape, tokens, rewrite))
    assert client.messages[0] == {
        "type": "http.response.start",
        "status": reply.status,
        "headers": client.messages[0]["headers"],
    }
    assert all(m["type"] == "http.response.body" for m in client.messages[1:])
    assert [m.get("more_body", False) for m in client.messages[1:]] == [True] * (len(client.bodies) - 1) + [False]
    return client, whole, tokens.result()


DROPPED = [
    "connection", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer", "transfer-encoding",
    "upgrade", "content-length", "server", "date", "set-cookie", "x-dami-lambda", "x-dami-variant", "x-dami-",
    "x-dami-anything-at-all", "x-request-id", "access-control-allow-origin", "access-control-expose-headers",
]  # fmt: skip


@pytest.mark.parametrize("name", DROPPED)
def test_a_server_cannot_set_cookies_or_speak_as_the_router(name: str) -> None:
    """Cookies, x-dami-* and the connection's own headers of a server stay behind."""
    reply = Scripted(b"", headers=[(b"content-type", b"a/b"), (name.encode(), b"evil"), (b"x-request-id", b"7")])
    ours = [(b"x-dami-variant", b"v")]
    assert reply_headers(reply, ours) == [(b"content-type", b"a/b"), *ours]


def test_all_other_headers_are_passed_on_in_their_order() -> None:
    """Also several of one name, and names that only resemble those that are dropped."""
    kept = [(b"x-dam", b"1"), (b"x-damiano", b"2"), (b"cookie-set", b"3"), (b"vary", b"4"), (b"vary", b"5")]
    assert reply_headers(Scripted(b"", headers=kept), []) == kept


def test_a_whole_reply_is_sent_with_its_length() -> None:
    """One body, its own length, the server's status, and its tokens counted."""
    body = b'{"usage": {"completion_tokens": 12}}'
    client, whole, tokens = relayed(Scripted(body, stream=False, status=206))
    assert (client.bodies, whole, tokens) == ([body], True, 12)
    assert client.messages[0]["headers"] == [*HEADERS, (b"content-length", b"36")]


def test_a_rewritten_whole_reply_has_its_new_length() -> None:
    """The length is that of what is sent, not of what came."""
    client, _, _ = relayed(Scripted(b"abc", stream=False), rewrite=lambda data: data * 5)
    assert client.body == b"abc" * 5
    assert client.messages[0]["headers"][-1] == (b"content-length", b"15")


def test_a_stream_has_no_length_and_counts_its_events() -> None:
    """Events are passed on as they come, each counted once."""
    client, whole, tokens = relayed(Scripted(b"data: 1\n\n", [b"data: 2\n\n", b"data: 3\n\n"]))
    assert (client.bodies, whole, tokens) == ([b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n", b""], True, 3)
    assert client.messages[0]["headers"] == HEADERS


EVENT = st.sampled_from(
    [b"data: x\n\n", b"data: x\r\n\r\n", b": c\n\n", b"data: \n", b"\n", b"\r\n", b"data: [DONE]\n\n"]
)


@given(st.lists(EVENT, max_size=8), st.lists(st.integers(0, 80), max_size=6))
def test_no_byte_of_a_stream_is_lost_or_reordered(events: list[bytes], cuts: list[int]) -> None:
    """Wherever the server's packets are cut, a stream that ends well arrives byte for byte."""
    text = b"".join(events)
    edges = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    pieces = [text[a:b] for a, b in pairwise(edges)] or [b""]
    client, whole, _ = relayed(Scripted(pieces[0], pieces[1:]))
    assert (client.body, whole) == (text, True)


@given(st.lists(EVENT, max_size=8), st.lists(st.integers(0, 80), max_size=6))
def test_a_stream_that_breaks_ends_behind_a_whole_event(events: list[bytes], cuts: list[int]) -> None:
    """Before the error the client reads exactly the whole events that came, and nothing of one that did not."""
    text = b"".join(events)
    edges = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    pieces = [text[a:b] for a, b in pairwise(edges)] or [b""]
    client, whole, _ = relayed(Scripted(pieces[0], pieces[1:], breaks=True))
    end = max(
        text.rfind(b"\n\n") + 2 if b"\n\n" in text else 0, text.rfind(b"\r\n\r\n") + 4 if b"\r\n\r\n" in text else 0
    )
    assert not whole
    assert b"".join(client.bodies[:-1]) == text[:end]
    assert json.loads(client.bodies[-1].removeprefix(b"data: "))["error"]["message"] == "the server's reply broke off"


def test_an_event_is_held_back_until_it_is_whole() -> None:
    """Of a packet that ends inside an event only the whole events are sent; nothing is sent where there is none."""
    client, _, _ = relayed(Scripted(b"data: 1\n\ndata", [b": 2", b"\n", b"\ndata: 3\r\n\r\nda", b"ta: 4"]))
    assert client.bodies == [b"data: 1\n\n", b"data: 2\n\ndata: 3\r\n\r\n", b"data: 4"]


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_an_empty_event_at_the_very_beginning_is_whole(end: bytes) -> None:
    """Servers send such to keep a connection open; it is not held back."""
    client, _, _ = relayed(Scripted(end + b"data", [b": 1" + end]))
    assert client.bodies == [end, b"data: 1" + end, b""]


def test_what_a_stream_ends_with_is_rewritten_too() -> None:
    """Each piece goes through the rewriting once, the unfinished last one included."""
    seen: list[bytes] = []

    def rewrite(data: bytes) -> bytes:
        seen.append(data)
        return data.upper()

    client, _, _ = relayed(Scripted(b"data: a\n\nda", [b"ta: b\n\nend"]), rewrite=rewrite)
    assert client.bodies == [b"DATA: A\n\n", b"DATA: B\n\n", b"END"]
    assert seen == [b"data: a\n\n", b"data: b\n\n", b"end"]


def test_a_stream_without_a_remainder_is_rewritten_no_further() -> None:
    """The end of a stream is an empty body, also where the rewriting would make something of nothing."""
    client, _, _ = relayed(Scripted(b"a\n\n"), rewrite=lambda data: b"<" + data + b">")
    assert client.bodies == [b"<a\n\n>", b""]


@pytest.mark.parametrize(("size", "held"), [(MIB, True), (MIB + 1, False)])
def test_an_event_over_a_mebibyte_is_not_waited_for(size: int, held: bool) -> None:
    """Up to 1 MiB the beginning of an event is held back; a longer one is passed on as it comes."""
    client, _, _ = relayed(Scripted(b"data: 0\n\n" + b"x" * size, [b"y\n\n"]))
    assert len(client.bodies[0]) == (9 if held else 9 + size)
    assert client.body == b"data: 0\n\n" + b"x" * size + b"y\n\n"


def test_a_long_event_in_many_packets_is_held_by_its_whole_length() -> None:
    """The limit is on what is held back, not on one packet."""
    client, _, _ = relayed(Scripted(b"x" * (MIB - 1), [b"y", b"z", b"\n\n"]))
    assert [len(body) for body in client.bodies] == [MIB + 1, 2, 0]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("openai", {"error": {"message": "the server's reply broke off", "type": "server_error", "param": None,
                              "code": "upstream_broke_off"}}),
        ("tgi", {"error": "the server's reply broke off", "error_type": "generation"}),
    ],
)  # fmt: skip
def test_a_broken_stream_ends_in_an_error_event_of_the_client_s_form(shape: Any, expected: dict[str, Any]) -> None:
    """One event with the reason, as OpenAI's or TGI's clients read it."""
    client, whole, _ = relayed(Scripted(b"data: 1\n\n", breaks=True), shape)
    assert not whole
    last = client.bodies[-1]
    assert last.startswith(b"data: {")
    assert last.endswith(b"}\n\n")
    assert json.loads(last[6:]) == expected


def shout(data: bytes) -> bytes:
    """A rewriting that would break any compressed bytes."""
    return data.upper()


def compressed(**more: Any) -> Scripted:
    """Return a reply whose bytes the proxy cannot read."""
    return Scripted(b"\x1fab", headers=[*HEADERS, (b"content-encoding", b"gzip")], **more)


def test_compressed_bytes_are_passed_on_as_they_come() -> None:
    """They are neither rewritten nor held back until an event is whole, be it a stream or a whole reply."""
    client, whole, _ = relayed(compressed(later=[b"cd", b"e\n\nf"]), rewrite=shout)
    assert (client.bodies, whole) == ([b"\x1fab", b"cd", b"e\n\nf", b""], True)
    client, whole, _ = relayed(compressed(stream=False), rewrite=shout)
    assert (client.bodies, whole) == ([b"\x1fab"], True)


def test_an_encoding_that_changes_nothing_is_read() -> None:
    """`identity` is rewritten like a reply without any encoding."""
    reply = Scripted(b"ab", stream=False, headers=[(b"content-encoding", b"identity")])
    assert relayed(reply, rewrite=shout)[0].body == b"AB"


def test_a_compressed_stream_that_breaks_gets_no_error_event() -> None:
    """Text cannot be put into compressed bytes: the reply is left unfinished, so that the connection ends."""
    client, reply = Client(), compressed(later=[b"cd"], breaks=True)
    assert not asyncio.run(relay(client.send, reply, HEADERS, "openai", TokenCount(stream=True)))
    assert client.bodies == [b"\x1fab", b"cd"]
    assert client.messages[-1]["more_body"]


ANTHROPIC_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 405: "invalid_request_error",
    408: "invalid_request_error", 413: "request_too_large", 415: "invalid_request_error", 429: "rate_limit_error",
    500: "api_error", 502: "api_error", 503: "overloaded_error",
}  # fmt: skip


@pytest.mark.parametrize("status", sorted(ANTHROPIC_KINDS))
def test_errors_have_anthropic_s_form(status: int) -> None:
    """Type by status, and message."""
    found = error_body("anthropic", HttpError(status, "why"))
    assert found == {"type": "error", "error": {"type": ANTHROPIC_KINDS[status], "message": "why"}}


def test_error_events_of_anthropic_s_form_have_a_name() -> None:
    """Its clients tell events apart by their name; those of the other forms have none."""
    event = error_event("anthropic", "why")
    assert event.startswith(b"event: error\ndata: {")
    assert json.loads(event.split(b"data: ")[1]) == {"type": "error", "error": {"type": "api_error", "message": "why"}}
    assert error_event("openai", "why").startswith(b"data: {")
    assert error_event("tgi", "why").startswith(b"data: {")


OPENAI_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 404: "invalid_request_error",
    405: "invalid_request_error", 413: "invalid_request_error", 429: "rate_limit_error", 500: "server_error",
    502: "server_error", 503: "server_error",
}  # fmt: skip
TGI_KINDS = {400: "validation", 404: "validation", 413: "validation", 422: "validation", 429: "overloaded",
             405: "generation", 502: "generation", 503: "generation"}  # fmt: skip


@pytest.mark.parametrize("status", sorted(OPENAI_KINDS))
def test_errors_have_openai_s_form(status: int) -> None:
    """Message, type by status, and code."""
    found = error_body("openai", HttpError(status, "why", code="c"))
    assert found == {"error": {"message": "why", "type": OPENAI_KINDS[status], "param": None, "code": "c"}}


@pytest.mark.parametrize("status", sorted(TGI_KINDS))
def test_errors_have_tgi_s_form(status: int) -> None:
    """Message, and type by status."""
    assert error_body("tgi", HttpError(status, "why")) == {"error": "why", "error_type": TGI_KINDS[status]}


def test_an_error_carries_its_status_headers_and_message() -> None:
    """Headers are kept as they were given; by default there are none, and no code."""
    error = HttpError(429, "busy", headers=iter([(b"retry-after", b"1")]))
    assert (error.status, error.message, str(error), error.code) == (429, "busy", "busy", None)
    assert error.headers == ((b"retry-after", b"1"),)
    assert HttpError(404, "no", code="c").headers == ()
    assert HttpError(404, "no", code="c").code == "c"


def test_error_events_are_readable_text() -> None:
    """Letters beyond ASCII stay letters."""
    assert "λ → 1" in error_event("openai", "λ → 1").decode()


def test_json_replies_are_compact_and_whole() -> None:
    """Status, content type before other headers, the length in bytes, no spaces, letters beyond ASCII as they are."""
    client = Client()
    asyncio.run(send_json(client.send, 404, {"λ": [1, "é"], "b": None}, [(b"x", b"y")]))
    body = '{"λ":[1,"é"],"b":null}'.encode()
    assert client.messages == [
        {"type": "http.response.start", "status": 404, "headers": [
            (b"content-type", b"application/json"), (b"x", b"y"), (b"content-length", b"%d" % len(body))]},
        {"type": "http.response.body", "body": body},
    ]  # fmt: skip


def test_json_replies_survive_what_is_no_text() -> None:
    """A lone surrogate, as a client's JSON may hold one, is replaced instead of failing the reply."""
    client = Client()
    asyncio.run(send_json(client.send, 400, {"error": "\ud800"}))
    assert client.body == b'{"error":"?"}'


def test_a_whole_reply_may_be_empty() -> None:
    """Its length is then 0."""
    client = Client()
    asyncio.run(send_whole(client.send, 200, [], b""))
    assert client.messages[0]["headers"] == [(b"content-length", b"0")]
    assert client.messages[1]["body"] == b""


def asked(pieces: Sequence[bytes], limit: int, *, gone: bool = False, headers: Any = ()) -> tuple[bytes, int]:
    """Read a request's body from ASGI messages; return it, and how many messages were taken."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": p, "more_body": True} for p in pieces]
    if gone:
        messages.append({"type": "http.disconnect"})
    else:
        messages[-1].pop("more_body")
    taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        return messages[taken - 1]

    try:
        return asyncio.run(read_body({"headers": list(headers)}, receive, limit, 60.0)), taken
    except HttpError as error:
        assert (error.status, f"larger than {limit} bytes" in error.message) == (413, True)
        return b"413", taken


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=5))
def test_a_body_is_read_whole_whatever_pieces_it_comes_in(pieces: list[bytes]) -> None:
    """Up to the limit, and with all of its messages taken."""
    whole = b"".join(pieces)
    assert asked(pieces, len(whole)) == (whole, len(pieces))


def test_a_message_without_a_body_is_an_empty_piece() -> None:
    """ASGI allows to leave `body` out."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    assert asyncio.run(read_body({"headers": []}, receive, 10, 60.0)) == b""


def test_a_body_over_the_limit_is_refused_as_soon_as_that_is_known() -> None:
    """By its declared length before anything is read, else with the piece that goes beyond it."""
    assert asked([b"12345"], 5, headers=[(b"content-length", b"5")]) == (b"12345", 1)
    assert asked([b"12345"], 4, headers=[(b"content-length", b"5")]) == (b"413", 0)
    assert asked([b"123", b"45", b"6", b"7"], 5) == (b"413", 3)
    assert asked([b"123"], 5, headers=[(b"content-length", b"many")]) == (b"123", 1)
    assert asked([b"123"], 5, headers=[(b"content-length", b"9" * 5000)]) == (b"413", 0)


def test_a_client_that_leaves_is_no_empty_body() -> None:
    """Where the client goes before the body's end, the request ends."""
    with pytest.raises(ClientGoneError):
        asked([b"12"], 10, gone=True)


def test_the_first_of_several_headers_counts() -> None:
    """None where there is none; names are as ASGI gives them, in lower case."""
    scope = {"headers": [(b"a", b"1"), (b"b", b"2"), (b"b", b"3")]}
    assert (header(scope, b"b"), header(scope, b"a"), header(scope, b"c")) == (b"2", b"1", None)
