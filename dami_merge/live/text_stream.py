"""Turn tokens into text that can be shown at once: whole characters only, and no part of a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["VisibleText"]

_UNFINISHED = "\ufffd"
_LONGEST_CHARACTER = 8
"""Tokens after which an unfinished character is treated as invalid; UTF-8 has at most four bytes."""


class VisibleText:
    """The text of one row as it grows.

    `decode` turns token ids into text. Text that is not certain yet (half a character, the possible beginning of a
    stop text) is held back until it is.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._read = 0
        self._held = ""
        self.stopped = False
        """Whether a stop text was found; nothing comes after it."""

    def push(self, token: int) -> str:
        """Append the next token and return the text that can be shown now."""
        self._ids.append(token)
        return self._release(self._fresh(), last=False)

    def finish(self) -> str:
        """Return the text that was held back, because the row has ended."""
        if self.stopped:
            return ""
        return self._release(self._fresh(last=True), last=True)

    def _fresh(self, *, last: bool = False) -> str:
        # Some tokenizers decode a token differently at the beginning of a text, so both decodings begin with the
        # same tokens, which were shown before.
        known, all_ = self._decode(self._ids[: self._read]), self._decode(self._ids)
        waiting = len(self._ids) - self._read
        if all_.endswith(_UNFINISHED) and not last and waiting <= _LONGEST_CHARACTER:
            return ""
        self._ids, self._read = self._ids[self._read :], waiting
        return all_[len(known) :]

    def _release(self, fresh: str, *, last: bool) -> str:
        text = self._held + fresh
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
