"""Read what a request asks for from its body, without changing a byte of it.

The body stays as received: numbers, spacing and unknown fields reach the server untouched. Only
the value of `model` is replaced, in place, where a server wants its own name for the variant; and
for vLLM at any λ, two more members.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, Literal

from dami_router.messages.hints import HintError, Hints, effort_of

__all__ = ["BadRequestError", "Request", "Shape", "read_request"]

Shape = Literal["openai", "tgi", "anthropic"]
"""Whose format a route uses, for its fields and its errors."""

Span = tuple[str, int, int]
"""A top-level member's name, and its value's first byte and the byte after its last in the body."""

_MARK = b"\xef\xbb\xbf"
_CHATS = {"/v1/responses": ("input", "instructions"), "/v1/messages": ("messages", "system")}
"""Where a route has its conversation, and what stands before it, unless that is in `messages`."""
_SPACES = " \t\n\r"
_SPACE = re.compile(f"[{_SPACES}]*")
_HINTS = Hints()
_BEGINNING = 1024
_LONGEST_NUMBER = 4300  # digits; Python refuses longer ones
_MODEL = re.compile(rb'"model"[ \t\n\r]*:[ \t\n\r]*("(?:[^"\\]|\\.)*")')


class BadRequestError(Exception):
    """The body is not a request; the message is for the client and quotes nothing of it."""


@dataclass(slots=True)  # freezing would cost 3 % of a request
class Request:
    """One request: its route, and what the router reads of it. Not to be changed.

    `messages` is None for a request without a chat; `prompt` is then its text, empty where it is not one text.
    """

    path: str
    shape: Shape
    body: bytes = field(repr=False)
    model: str | None
    stream: bool
    text: str = field(repr=False)
    effort: str | None = None
    user: str = field(default="", repr=False)
    messages: Sequence[Mapping[str, Any]] | None = field(default=None, repr=False)
    prompt: str | None = field(default=None, repr=False)
    model_spans: Sequence[Span] = ()
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def draw(self) -> float:
        """A number in [0, 1) from the chat up to its last user message, so that a tool loop keeps it; else the body."""
        said = self.messages or ()
        last = max((at for at, message in enumerate(said) if _asks(message)), default=-1)
        digest = self._digest(said[: last + 1]) if last >= 0 else hashlib.blake2b(self.body).digest()
        return int.from_bytes(digest[:6]) / (1 << 48)

    @property
    def follow_up(self) -> bool:
        """Whether the conversation has an answer already."""
        return self.tool_loop or any(message.get("role") == "assistant" for message in self.messages or ())

    @property
    def tool_loop(self) -> bool:
        """Whether the request brings the results of tools that the last answer called, in any API's form."""
        last = self.messages[-1] if self.messages else {}
        if last.get("role") in ("tool", "function") or str(last.get("type")).endswith("_call_output"):
            return True
        return last.get("role") == "user" and _has_results(last.get("content"))

    @property
    def conversation(self) -> bytes | None:
        """A digest of how the conversation begins: everything up to its first user message; None without a chat."""
        return self._digest(_beginning(self.messages)) if self.messages else None

    @property
    def beginning(self) -> bytes | None:
        """A digest of the conversation's beginning, or of the prompt's first 1,024 characters; None without text."""
        if self.messages or not self.prompt:
            return self.conversation
        return hashlib.blake2b(self.prompt[:_BEGINNING].encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def _digest(self, messages: Iterable[Mapping[str, Any]]) -> bytes:
        said = "".join([f"{self.user}\0", *[f"{_role(m)}\0{_plain(m.get('content'))}\0" for m in messages]])
        return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def body_for(self, model: str | None) -> bytes:
        """Return the body with another model name; None keeps the body as it is."""
        if model is None:
            return self.body
        if len(self.model_spans) != 1:
            return self.body_with({"model": model})
        _, start, end = self.model_spans[0]
        return b"".join((self.body[:start], json.dumps(model).encode(), self.body[end:]))

    def body_with(self, members: Mapping[str, object]) -> bytes:
        """Return the body with these top-level members: replaced in place, or added in front."""
        spans: Sequence[Span] = self.model_spans if "model" in members else ()
        if self._may_hold(*(members.keys() - {"model"})):
            _, spans = _scan(self.body.decode(), members)
        parts, end = [], 0
        for name, start, stop in spans:
            parts += [self.body[end:start], json.dumps(members[name]).encode()]
            end = stop
        body = b"".join([*parts, self.body[end:]])
        absent = {name: value for name, value in members.items() if name not in {span[0] for span in spans}}
        if not absent:
            return body
        rest = body[body.index(b"{") + 1 :]
        added = json.dumps(absent, separators=(",", ":")).encode()[:-1]
        return added + (b"" if rest.lstrip().startswith(b"}") else b",") + rest

    def adding(self, name: str, value: object) -> Request:
        """Return the request with one more top-level member; unchanged where the body has it already."""
        if self.members(name):
            return self
        body = self.body_with({name: value})
        moved = len(body) - len(self.body)  # it is added in front
        spans = tuple((key, start + moved, end + moved) for key, start, end in self.model_spans)
        return replace(self, body=body, model_spans=spans)

    def members(self, *names: str) -> Mapping[str, Any]:
        """Return those of these top-level members that the body has."""
        if not self._may_hold(*names):
            return {}
        found, _ = _members(self.body)
        return {name: found[name] for name in names if name in found}

    def _may_hold(self, *names: str) -> bool:
        """Say whether the body may have one of these members; only escapes can spell a key differently."""
        return any(name.encode() in self.body for name in names) or (bool(names) and b"\\u" in self.body)


def read_request(
    path: str, shape: Shape, body: bytes, headers: Mapping[str, str] | None = None, hints: Hints = _HINTS
) -> Request:
    """Read a body; raises BadRequestError where it is not a JSON object, or asks for an unknown effort.

    Everything else is left to the server to accept or refuse.
    """
    members, spans = _members(body)
    model = members.get("model")
    if model is not None and not isinstance(model, str):
        raise BadRequestError("`model` must be a string")
    xargs = members.get("vllm_xargs")
    if isinstance(xargs, dict) and "lambda" in xargs:
        raise BadRequestError("`vllm_xargs` holds `lambda`; pin λ with the model's name instead, as in `dami:0.37`")
    stream = members.get("stream") is True or path == "/generate_stream"
    messages = _messages(members, path)
    text = _text(members, messages)
    try:
        effort = effort_of(members, text, hints, anthropic=shape == "anthropic")
        user = str(members.get("user") or "")
    except HintError as error:
        raise BadRequestError(str(error)) from None
    except RecursionError:
        raise BadRequestError("the body is nested too deeply") from None
    return Request(
        path=path,
        shape=shape,
        body=body,
        model=model,
        stream=stream,
        text=text,
        effort=effort,
        user=user,
        messages=[message for message in messages if isinstance(message, dict)] if messages is not None else None,
        prompt=_prompt(members) if messages is None else None,
        model_spans=spans,
        headers=headers or {},
    )


def _members(body: bytes) -> tuple[dict[str, Any], list[Span]]:
    """Return the top-level members, and the spans of every value of `model`."""
    try:
        return _quick(body) or _scan(body.decode("utf-8"), ("model",))
    except UnicodeDecodeError:
        raise BadRequestError("the body is not UTF-8 text") from None
    except RecursionError:
        raise BadRequestError("the body is nested too deeply") from None
    except (ValueError, IndexError, StopIteration) as error:
        if "integer string conversion" in str(error):  # Python's own limit
            raise BadRequestError(f"the body has a number of more than {_LONGEST_NUMBER} digits") from None
        raise BadRequestError("the body is not a JSON object") from None


def _messages(members: Mapping[str, Any], path: str) -> list[Any] | None:
    """Return the conversation as chat messages; None where the request has none.

    The Responses API has it as `input`: a text, or items of which the messages count. `instructions`, and Anthropic's
    `system`, stand before it.
    """
    said, before = _CHATS.get(path, ("messages", None))
    found = members.get(said)
    if said == "input" and isinstance(found, str):
        found = [{"role": "user", "content": found}]
    if not isinstance(found, list):
        return None
    system = members.get(before) if before else None
    return [{"role": "system", "content": system}, *found] if system else found


def _quick(body: bytes) -> tuple[dict[str, Any], list[Span]] | None:
    """Do the same as `_scan`, ten times faster, where `model` is easy to find; None where it is not.

    Only escapes (`\\u006d`) can spell the key differently, and quotes inside a string are escaped. So where there is
    no such escape and `"model"` occurs once, it is the key, or the key is absent.
    """
    if body.startswith(_MARK):
        raise BadRequestError("the body begins with a byte-order mark; send UTF-8 without one")
    if body.count(b'"model"') != 1 or b"\\u" in body:
        return None
    text = body.decode("utf-8").strip(_SPACES)
    members, end = _DECODER.raw_decode(text)
    if end != len(text):
        return None
    found = _MODEL.search(body)
    if not isinstance(members, dict) or "model" not in members or found is None:
        return None
    return members, [("model", *found.span(1))]


_DECODER = json.JSONDecoder()


def _scan(text: str, names: Container[str]) -> tuple[dict[str, Any], list[Span]]:
    """Return the top-level members, and the spans of every value of `names`."""
    at = _skip(text, 0)
    _expect(text, at, "{")
    members: dict[str, Any] = {}
    spans: list[Span] = []
    at = _skip(text, at + 1)
    while text[at] != "}":
        _expect(text, at, '"')
        key, at = scanstring(text, at + 1, True)
        at = _skip(text, at)
        _expect(text, at, ":")
        start = _skip(text, at + 1)
        members[key], at = _DECODER.raw_decode(text, start)
        if key in names:
            spans.append((key, len(text[:start].encode()), len(text[:at].encode())))
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
            _expect(text, at, '"')
        else:
            _expect(text, at, "}")
    if _skip(text, at + 1) != len(text):
        raise ValueError
    return members, spans


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _expect(text: str, at: int, character: str) -> None:
    if text[at] != character:
        raise ValueError


def _text(members: Mapping[str, Any], messages: list[Any] | None) -> str:
    """Return the user's latest text: the last user message, the prompt, or the inputs."""
    for message in reversed(messages or ()):
        if _asks(message):
            return _plain(message.get("content"))
    return _plain(members.get("prompt", members.get("inputs")))


def _prompt(members: Mapping[str, Any]) -> str:
    """Return the single text of a request without a chat; empty for none, several, or token ids."""
    prompt = members.get("prompt", members.get("inputs"))
    only = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt
    return only if isinstance(only, str) else ""


def _plain(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        # OpenAI's `text`, the Responses API's `input_text` and Anthropic's `text` parts all have `text`.
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "\n".join(part for part in parts if isinstance(part, str))
    return ""


def _asks(message: object) -> bool:
    """Return whether a message is the user's own, and not only the results of tools, as Anthropic's API sends them."""
    if not isinstance(message, dict) or message.get("role") != "user":
        return False
    content = message.get("content")
    return isinstance(content, str) or not _has_results(content) or bool(_plain(content))


def _has_results(content: object) -> bool:
    parts = content if isinstance(content, list) else ()
    return any(isinstance(part, dict) and part.get("type") == "tool_result" for part in parts)


def _role(message: object) -> object:
    return message.get("role") if isinstance(message, dict) else None


def _beginning(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        yield message
        if message.get("role") == "user":
            return
