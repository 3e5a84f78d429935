"""API keys: where clients put them, and whether one is right."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from dami_router.proxy.wire import HttpError, Scope, header

__all__ = ["Keys"]

_CHALLENGE = ((b"www-authenticate", b"Bearer"),)


class Keys:
    """The keys that a proxy accepts; without any, every request may pass."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def require(self, scope: Scope) -> None:
        """Raise HttpError 401 unless the request carries an accepted key.

        Keys come as `authorization: Bearer …` (the scheme in any case), as `x-api-key` (Anthropic's clients) or as
        `api-key` (Azure's).
        """
        if not self._keys:
            return
        scheme, _, bearer = (header(scope, b"authorization") or b"").partition(b" ")
        if scheme.lower() == b"bearer" and self._accepts(bearer.strip()):
            return
        others = [value for name in (b"x-api-key", b"api-key") if (value := header(scope, name))]
        if not any(map(self._accepts, others)):
            raise HttpError(401, "missing or wrong API key", code="invalid_api_key", headers=_CHALLENGE)

    def _accepts(self, given: bytes) -> bool:
        # Compare every key, in constant time.
        right = False
        for key in self._keys:
            right |= hmac.compare_digest(given, key)
        return right
