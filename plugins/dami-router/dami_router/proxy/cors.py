"""Cross-origin requests: which origins a browser may send them from."""

from __future__ import annotations

from collections.abc import Sequence

from dami_router.proxy.wire import Scope, header

__all__ = ["Cors"]

_EXPOSED = (
    b"x-dami-lambda, x-dami-variant, x-dami-estimator, x-dami-cause, x-dami-route-ms, x-dami-attempts, x-request-id, "
    b"retry-after"
)
_METHODS = b"GET, HEAD, POST, OPTIONS"
_MAX_AGE_S = b"600"


class Cors:
    """The origins of `cors` in router.yml; `*` allows every origin. None by default."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)

    def headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """Return what a reply to this request says: nothing without an allowed origin."""
        if not self._origins:
            return []
        origin = header(scope, b"origin")
        if origin is None or not (origin in self._origins or b"*" in self._origins):
            return [(b"vary", b"origin")]
        return [
            (b"access-control-allow-origin", origin), (b"vary", b"origin"),
            (b"access-control-expose-headers", _EXPOSED),
        ]  # fmt: skip

    def preflight(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """Return what a reply to a preflight request says beside `headers`."""
        if len(self.headers(scope)) < 2 or header(scope, b"access-control-request-method") is None:
            return []
        asked = header(scope, b"access-control-request-headers") or b""
        # The names that the browser asks for, given back: it is the key that decides, not the header's name.
        names = asked if asked.isascii() and asked.decode().isprintable() else b""
        return [
            (b"access-control-allow-methods", _METHODS), (b"access-control-max-age", _MAX_AGE_S),
            *([(b"access-control-allow-headers", names)] if names else []),
        ]  # fmt: skip
