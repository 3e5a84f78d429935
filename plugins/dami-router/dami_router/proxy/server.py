"""Run the proxy with uvicorn, and drain on SIGTERM."""

from __future__ import annotations

import gc
import logging
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from dami_router.config.router_schema import Limits
from dami_router.config.specs import RouterConfig
from dami_router.errors import FailureError

if TYPE_CHECKING:
    import uvicorn

    from dami_router.proxy.app import Proxy

__all__ = ["allow_files", "require_port", "require_serving", "serve", "serve_many", "settings"]


_LOG = logging.getLogger(__name__)
_OTHER_FILES = 128
"""Files for all else: connections that are being refused, health checks, modules, logs."""


def require_serving() -> None:
    """Raise FailureError where a package that serving needs is not installed."""
    try:
        import uvicorn  # noqa: F401

        from dami_router.proxy import app  # noqa: F401
    except ImportError as error:
        raise FailureError(
            f"serving needs {error.name}, which is not installed", hint="pip install 'dami-router[serve]'"
        ) from None


def settings(proxy: Proxy, host: str, port: int, limits: Limits) -> uvicorn.Config:
    """Return uvicorn's settings."""
    import uvicorn

    from dami_router.proxy.guard import guarded

    return uvicorn.Config(
        proxy,
        host=host,
        port=port,
        lifespan="on",
        access_log=False,
        log_level="warning",
        log_config=None,
        server_header=False,
        date_header=False,
        ws="none",
        http=guarded(limits),
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(limits.drain)),
    )


def require_port(host: str, port: int) -> None:
    """Raise FailureError where the address cannot be bound: before a model is loaded, not after."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise FailureError(
            f"no server can start at {host}:{port}: {error.strerror or error}", hint="--port 0 picks a free one"
        ) from None


def allow_files(limits: Limits) -> None:
    """Raise this process's limit of open files to what the limits of connections need, as far as it may.

    Beyond it, servers that answer would seem to refuse connections.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    needed = limits.connections + 2 * limits.concurrency + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    allowed = needed if hard == unlimited else min(needed, hard)
    if soft != unlimited and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        _LOG.warning("%d files may be open, and limits of connections and concurrency need %d", allowed, needed)


def serve_many(
    workers: int, config: RouterConfig, host: str, port: int, ready: Callable[[str], None],
    proxy: Callable[[int], Proxy],
) -> None:  # fmt: skip
    """Serve in several processes behind one port, until SIGTERM or SIGINT.

    `proxy` makes the application of a worker, by its number. Raises as `serve` does.
    """
    from dami_router.proxy.workers import Workers, listening

    require_port(host, port)
    # Kept open, so that the port stays ours while no worker listens.
    with listening(host, port) as held:
        bound = held.getsockname()[1]

        def work(number: int, told: Callable[[], None]) -> None:
            serve(config, host, bound, lambda _: told(), proxy(number), listening(host, bound))

        Workers(workers, work).run(lambda: ready(_address(host, bound)))


def _address(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    config: RouterConfig, host: str, port: int, ready: Callable[[str], None], proxy: Proxy | None = None,
    sock: socket.socket | None = None,
) -> None:  # fmt: skip
    """Serve until SIGTERM or SIGINT; requests in progress are finished within `limits.drain` seconds.

    `ready` is called with the address once requests are accepted. `proxy` is the application, where it is not simply
    that of `config`; `sock` is bound already, to that address. Raises FailureError where the port is taken, a server
    serves the wrong model, or the extra `serve` is not installed.
    """
    require_serving()
    import uvicorn

    from dami_router.proxy.app import Proxy

    class Server(uvicorn.Server):
        async def startup(self, sockets: object = None) -> None:
            await super().startup(sockets)  # type: ignore[arg-type]
            if self.started:
                bound = self.servers[0].sockets[0].getsockname()[1]
                # What is loaded now stays: take it out of the garbage collector's sight.
                gc.collect()
                gc.freeze()
                ready(_address(host, bound))

    proxy = proxy or Proxy(config)
    allow_files(config.limits)
    # Otherwise uvicorn raises SIGTERM again after its clean shutdown, and the exit code is that of a kill.
    signal.signal(signal.SIGTERM, lambda *_: None)
    server = Server(settings(proxy, host, port, config.limits))
    try:
        server.run([sock] if sock else None)
    except SystemExit:
        # uvicorn has logged why: a port in use, or a failed start-up.
        raise FailureError(f"no server could start at {host}:{port}", hint="the reason is above") from None
    if not server.started:
        proxy.router.require_usable()
        raise FailureError(f"no server could start at {host}:{port}", hint="the reason is above")
