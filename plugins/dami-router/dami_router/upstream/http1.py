"""A server's bytes as replies of HTTP/1.1, without a socket: fed as they come, however they are cut.

Does: bodies with a length, in chunks, or until the end; interim (1xx) replies are passed over.
Does not: upgrades, decompression, several replies to one request. What is HTTP is httptools' (llhttp's) to say.
"""

from __future__ import annotations

import httptools

from dami_router.upstream.reply import CallError

__all__ = ["ReplyParser"]

# What comes in pieces is counted twice, as bytes and as headers: at least 64 KiB of headers are taken.
_MAX_HEAD = 1 << 17
# How long the names of the headers are that say where a body ends.
_FRAMING = (len("content-length"), len("transfer-encoding"))


class ReplyParser:
    """One reply at a time: `expect`, then `feed` until `complete` or `failed`; `end` where the connection ends.

    `status` and `headers` hold once `headed`. `parts` are pieces of the body not yet taken, `size` their bytes.
    `keep` says whether the server will take another request.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.expect()
        self.complete = True

    def expect(self) -> None:
        """Forget the last reply; another one is asked for."""
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = []
        self.size = self._head_size = 0
        self.headed = self.complete = self.keep = False
        self.failed: str | None = None
        self._seen = self._framed = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes; `failed` is `not_http` where they make no sense."""
        self._seen = True
        try:
            self._parser.feed_data(data)
            if not self.headed:
                self._add_to_head(len(data))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, CallError):
            self.keep = False
            self.fail("not_http")

    def end(self, *, clean: bool) -> None:
        """Take the end of the connection: of a body without a length it is the end, else the reply has `failed`."""
        self.keep = False
        if clean and self.headed and not self._framed and self.failed is None:
            self.complete = True
        self.fail("broke_off" if self._seen else "disconnected")

    def fail(self, why: str) -> None:
        """Note why nothing more will come; a complete reply stays complete, and the first reason counts."""
        if not self.complete and self.failed is None:
            self.failed = why

    # What the parser calls.

    def on_message_begin(self) -> None:  # noqa: D102
        if self.complete:
            raise CallError("not_http")  # a second reply to one request

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        self._add_to_head(len(name) + len(value))
        if not self.headed:  # else it is a trailer
            self.headers.append((name, value))
            if len(name) in _FRAMING and self._frames(name.lower(), value.lower()):
                self._framed = True

    @staticmethod
    def _frames(name: bytes, value: bytes) -> bool:
        return name == b"content-length" or (name == b"transfer-encoding" and b"chunked" in value)

    def on_headers_complete(self) -> None:  # noqa: D102
        status = self._parser.get_status_code()
        if status < 200:
            self.headers, self._framed = [], False
            return
        self.status, self.headed = status, True
        self.keep = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:  # noqa: D102
        self.parts.append(body)
        self.size += len(body)

    def on_message_complete(self) -> None:  # noqa: D102
        self.complete = self.headed  # an interim reply is not the one asked for

    def _add_to_head(self, size: int) -> None:
        self._head_size += size
        if self._head_size > _MAX_HEAD:
            raise CallError("not_http")
