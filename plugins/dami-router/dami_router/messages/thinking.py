"""`<think>` in all its shapes: `<think>…</think>…`, `…</think>…`, none.

Where the chat template opens the block in the prompt, answers carry only `</think>`. Text passes
through the proxy untouched; the option `thinking: split` moves the thoughts of chat replies into
`reasoning_content` and `reasoning`, the names that servers and clients use. A reply that has one of
them already stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

__all__ = ["CLOSE", "OPEN", "SplitEvents", "Splitter", "split_body", "split_thinking"]

OPEN, CLOSE = "<think>", "</think>"


def split_thinking(text: str, opened: bool = False) -> tuple[str | None, str]:
    """Return thoughts (None where there are none) and answer.

    `opened` means that the prompt ended inside the block; a bare `</think>` shows it too.
    """
    splitter = Splitter(opened or (CLOSE in text and not text.lstrip().startswith(OPEN)))
    first, last = splitter.feed(text), splitter.end()
    thoughts, answer = first[0] + last[0], first[1] + last[1]
    return (thoughts if splitter.thought else None), answer


class Splitter:
    """The same for text in pieces; holds back at most what may be the start of a tag."""

    def __init__(self, opened: bool = False) -> None:
        self.thought = opened
        self._state: Literal["start", "inside", "answer"] = "inside" if opened else "start"
        self._held = ""
        self._fresh = True

    def feed(self, text: str) -> tuple[str, str]:
        """Take a piece; return what is thought and what is answer by now."""
        self._held += text
        thoughts = ""
        if self._state == "start" and not self._begin():
            return "", ""
        if self._state == "inside":
            thoughts = self._think()
        answer = ""
        if self._state == "answer":
            answer, self._held = self._held, ""
            if self.thought and self._fresh:
                answer = answer.lstrip("\n")  # the line breaks after the closing tag belong to neither
                self._fresh = not answer
        return thoughts, answer

    def end(self) -> tuple[str, str]:
        """Return the text that was held back."""
        held, self._held = self._held, ""
        return (held, "") if self._state == "inside" else ("", held)

    def _begin(self) -> bool:
        bare = self._held.lstrip()
        if bare.startswith(OPEN):
            self.thought, self._state, self._held = True, "inside", bare[len(OPEN) :]
        elif not OPEN.startswith(bare):
            self._state = "answer"
        return self._state != "start"

    def _think(self) -> str:
        if self._fresh and (self._held.startswith(OPEN) or OPEN.startswith(self._held)):
            # A model may repeat the opening tag of its template.
            if len(self._held) < len(OPEN):
                return ""
            self._held = self._held[len(OPEN) :]
        if self._held:
            self._fresh = False
        thoughts, found, rest = self._held.partition(CLOSE)
        if found:
            self._state, self._held, self._fresh = "answer", rest, True
            return thoughts
        keep = next((n for n in range(min(len(CLOSE) - 1, len(thoughts)), 0, -1) if CLOSE.startswith(thoughts[-n:])), 0)
        self._held = thoughts[len(thoughts) - keep :]
        return thoughts[: len(thoughts) - keep]


def split_body(body: bytes, opened: bool) -> bytes:
    """Return a chat completion with its thoughts in `reasoning_content`; anything else unchanged."""

    def change(choice: dict[str, Any]) -> bool:
        message = choice.get("message")
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or _separated(message):
            return False
        thoughts, message["content"] = split_thinking(message["content"], opened)
        if thoughts is not None:
            message["reasoning_content"] = message["reasoning"] = thoughts
        return thoughts is not None

    return _changed(body, change)


class SplitEvents:
    """The same for the events of a stream; call it with whole events."""

    def __init__(self, opened: bool) -> None:
        self._opened = opened
        self._splitters: dict[int, Splitter] = {}
        self._separated: set[int] = set()

    def __call__(self, events: bytes) -> bytes:
        """Return the events with their deltas split; other events stay unchanged."""
        lines = events.split(b"\n")
        return b"\n".join(self._line(line) if line.startswith(b"data:") else line for line in lines)

    def _line(self, line: bytes) -> bytes:
        data = line[5:]
        changed = _changed(data, self._choice)
        return line if changed is data else b"data: " + changed

    def _choice(self, choice: dict[str, Any]) -> bool:
        delta, index = choice.get("delta"), choice.get("index", 0)
        if not isinstance(delta, dict) or not isinstance(index, int):
            return False
        if _separated(delta):
            self._separated.add(index)
        if index in self._separated:
            return False
        splitter = self._splitters.setdefault(index, Splitter(self._opened))
        content = delta.get("content")
        if not isinstance(content, str):
            content = ""
        thoughts, answer = splitter.feed(content)
        if choice.get("finish_reason"):
            more = splitter.end()
            thoughts, answer = thoughts + more[0], answer + more[1]
        if answer == content:
            return False
        delta["content"] = answer
        if thoughts:
            delta["reasoning_content"] = delta["reasoning"] = thoughts
        return True


def _separated(message: dict[str, Any]) -> bool:
    """Whether the server has taken the thoughts out already, as vLLM's reasoning parsers do."""
    return bool(message.get("reasoning") or message.get("reasoning_content"))


def _changed(body: bytes, change: Callable[[dict[str, Any]], bool]) -> bytes:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return body
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list):
        return body
    touched = [change(choice) for choice in choices if isinstance(choice, dict)]
    if not any(touched):
        return body
    return json.dumps(data, separators=(",", ":")).encode()
