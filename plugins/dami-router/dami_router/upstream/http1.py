"""Parse a server's bytes into HTTP/1.1 replies, without a socket, in pieces of any size.

Supported: bodies with a length, in chunks, or until the end of the connection; interim (1xx) replies are skipped.
Not supported: upgrades, decompression, several replies to one request. httptools (llhttp) decides what is valid HTTP.
"""

from __future__ import annotations

import httptools

from dami_router.upstream.reply import CallError

__all__ = ["ReplyParser"]

# Trailers that come in pieces count twice, as bytes and as fields: at least 64 KiB of them are accepted.
_MAX_HEAD = 1 << 17
_MAX_FIELDS = 90  # Python's http.client, behind many clients, takes 100, and the proxy adds up to 10


class ReplyParser:
    """One reply at a time: `expect`, then `feed` until `complete` or `failed`; `end` where the connection ends.

    `status` and `headers` (names in lower case) hold once `headed`. `parts` are pieces of the body not yet taken,
    `size` their bytes. `keep` says whether the server will take another request.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.expect()
        self.complete = True

    def expect(self) -> None:
        """Forget the last reply and expect the next one."""
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = []
        self.size = self._head_size = 0
        self.headed = self.complete = self.keep = False
        self.failed: str | None = None
        self._seen = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes; `failed` becomes `not_http` where they are invalid."""
        self._seen = True
        try:
            self._head_size += len(data)
            self._parser.feed_data(data)
            if self._head_size > _MAX_HEAD:
                raise CallError("not_http")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, CallError):
            self.keep = False
            self.fail("not_http")

    def end(self, *, clean: bool) -> None:
        """Take the end of the connection: it completes a body without a length, and fails any other reply."""
        self.keep = False
        if clean and self.headed and not self.framed and self.failed is None:
            self.complete = True
        self.fail("broke_off" if self._seen else "disconnected")

    @property
    def framed(self) -> bool:
        """Whether the reply itself says where its body ends."""
        return any(
            name == b"content-length" or (name == b"transfer-encoding" and b"chunked" in value.lower())
            for name, value in self.headers
        )

    def fail(self, why: str) -> None:
        """Note why no more bytes will come; a complete reply stays complete, and the first reason is kept."""
        if not self.complete and self.failed is None:
            self.failed = why

    # Called by the parser.

    def on_message_begin(self) -> None:  # noqa: D102
        if self.complete:
            raise CallError("not_http")  # a second reply to one request

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        if not self.headed:
            self.headers.append((name.lower(), value))
            return
        self._head_size += len(name) + len(value)  # a trailer
        if self._head_size > _MAX_HEAD:
            raise CallError("not_http")

    def on_headers_complete(self) -> None:  # noqa: D102
        # Their exact size matters only where all that has come is more.
        if self._head_size > _MAX_HEAD and sum(len(name) + len(value) for name, value in self.headers) > _MAX_HEAD:
            raise CallError("not_http")
        if len(self.headers) > _MAX_FIELDS:
            raise CallError("not_http")
        status = self._parser.get_status_code()
        if status < 200:
            self.headers = []
            return
        self.status, self.headed, self._head_size = status, True, 0
        self.keep = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:  # noqa: D102
        self._head_size = 0  # what follows is the framing of chunks, then trailers
        self.parts.append(body)
        self.size += len(body)

    def on_message_complete(self) -> None:  # noqa: D102
        self.complete = self.headed  # an interim reply is not the final one
