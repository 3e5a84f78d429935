"""dami-router: estimate how hard a query needs thinking, and send it to the right variant.

This distribution is the light half of DAMI: it never imports torch. It also owns the
`dami` command, which other distributions extend through the entry-point group
`dami.commands`.
"""

from dami_router.errors import DamiError, FailureError, MisuseError

__version__ = "0.1.0"

__all__ = ["DamiError", "FailureError", "MisuseError", "__version__"]
