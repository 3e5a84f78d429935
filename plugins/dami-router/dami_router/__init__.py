"""dami-router: estimate how hard a query needs thinking, and send it to the right variant.

This distribution is the light half of DAMI: it never imports torch. It also owns the
`dami` command, which other distributions extend through the entry-point group
`dami.commands`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dami_router.errors import DamiError, FailureError, MisuseError
from dami_router.version import __version__

if TYPE_CHECKING:
    from dami_router.client import AsyncDamiClient, DamiClient
    from dami_router.router import Router


__all__ = ["AsyncDamiClient", "DamiClient", "DamiError", "FailureError", "MisuseError", "Router", "__version__"]

# Imported when first asked for: they need more than the command line does.
_LATER = {"Router": "router", "DamiClient": "client", "AsyncDamiClient": "client"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"dami_router.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
