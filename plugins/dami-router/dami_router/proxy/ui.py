"""The files of the page at `/ui`: read once, and sent under a policy that allows nothing from another host.

The files hold no secret and need no key; what they fetch does (`page_data`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from dami_router.proxy.wire import Headers, Scope, Send, header, send_whole, start
from dami_router.shared.look import look_css

__all__ = ["PageFile", "page_files"]

_KINDS = {
    "html": b"text/html; charset=utf-8", "css": b"text/css; charset=utf-8", "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}  # fmt: skip
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    b"trusted-types 'none'"
)
_ALWAYS = (
    (b"content-security-policy", _POLICY), (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"), (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
)  # fmt: skip


@dataclass(frozen=True)
class PageFile:
    """One file as it is sent; a browser that has it already (`etag`) gets a 304."""

    body: bytes
    headers: Headers
    etag: bytes = b""
    status: int = 200

    async def send(self, scope: Scope, send: Send) -> None:
        """Answer GET or HEAD."""
        if self.etag and header(scope, b"if-none-match") == self.etag:
            await start(send, 304, self.headers)
            await send({"type": "http.response.body", "body": b""})
        else:
            await send_whole(send, self.status, self.headers, self.body)


def page_files() -> Mapping[str, PageFile]:
    """Return the files by path: the page at `/ui`, and all that it loads below `/ui/`.

    Every address in them is relative, so that the page also works behind a path prefix. Those of `/ui/` would start
    one folder too deep: it is redirected.
    """
    found = {"/ui/look.css": _file("look.css", look_css().encode())}
    for path in files("dami_router.proxy").joinpath("page").iterdir():
        if path.name.rpartition(".")[2] in _KINDS:
            found["/ui" if path.name == "index.html" else f"/ui/{path.name}"] = _file(path.name, path.read_bytes())
    found["/ui/"] = PageFile(b"", ((b"location", b"../ui"), *_ALWAYS), status=308)
    return found


def _file(name: str, body: bytes) -> PageFile:
    etag = b'"%s"' % hashlib.blake2b(body, digest_size=12).hexdigest().encode()
    kind = _KINDS[name.rpartition(".")[2]]
    return PageFile(body, ((b"content-type", kind), (b"etag", etag), *_ALWAYS), etag)
