"""Count the tokens of an answer from its bytes as they pass."""

from __future__ import annotations

import re

__all__ = ["TokenCount"]

# Inside a JSON string the quotes are escaped, so a text about tokens is not mistaken for a count.
# (The end of the names comes first: `re` then looks for a fixed text.)
_NAMES = "|".join(rf'(?<=(?<!\\)"{name}_tokens")' for name in ("completion", "generated", "output"))
_COUNT = re.compile(rf'_tokens"(?:{_NAMES})\s*:\s*(\d{{1,9}})'.encode())
_KEEP = 4096


class TokenCount:
    """Reads the first and last 4 KiB of a reply: servers put the count near one of its ends.

    For a stream without a count, its events are counted: nearly one per token.
    """

    def __init__(self, *, stream: bool) -> None:
        self._stream = stream
        self._whole = self._tail = b""
        self._events = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes; a reply that is not a stream comes whole."""
        if self._stream:
            self._tail = chunk[-_KEEP:] if len(chunk) >= _KEEP else (self._tail + chunk)[-_KEEP:]
            self._events += chunk.count(b"data:")
        else:
            self._whole = chunk

    def result(self) -> int | None:
        """Return the count; None where the reply has none."""
        whole = self._whole
        found = _COUNT.findall(self._tail or whole[-_KEEP:]) or _COUNT.findall(whole[:_KEEP])
        if found:
            return int(found[-1])
        return self._events if self._stream else None
