"""The proxy: one HTTP address for a whole family."""

from dami_router.proxy.app import Proxy

__all__ = ["Proxy"]
