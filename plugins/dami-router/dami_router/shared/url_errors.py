"""What urllib's errors say, in words."""

from __future__ import annotations

import urllib.error

__all__ = ["reason_of"]


def reason_of(error: Exception) -> str:
    """Return why a request by urllib failed; an HTTP error's own text has its status."""
    cause = error.reason if type(error) is urllib.error.URLError else error
    return str(cause if isinstance(cause, urllib.error.HTTPError) else getattr(cause, "strerror", None) or cause)
