"""The ASGI application: routes, keys, limits, and a watch on the client during every call."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from dami_router.config.specs import RouterConfig
from dami_router.messages.request import BadRequestError, Request, Shape, read_request
from dami_router.proxy.admission import Admission, OverloadedError
from dami_router.proxy.exchange import Exchange
from dami_router.proxy.metrics import Metrics
from dami_router.proxy.watching import Watches
from dami_router.proxy.wire import (
    ClientGoneError,
    HttpError,
    Receive,
    Scope,
    Send,
    error_body,
    header,
    read_body,
    send_json,
    send_whole,
)
from dami_router.router import NoVariantError, Router, UnknownModelError
from dami_router.upstream.reply import Calls
from dami_router.version import __version__

__all__ = ["Proxy"]

_LOG = logging.getLogger(__name__)
_GENERATION: Mapping[str, Shape] = {
    "/v1/chat/completions": "openai", "/v1/completions": "openai",
    "/generate": "tgi", "/generate_stream": "tgi", "/": "tgi",
}  # fmt: skip
Post = Callable[[bytes], Awaitable[tuple[int, object]]]
# Only these headers of the client reach a server; its key never does.
_FORWARDED = (b"content-type", b"accept", b"user-agent", b"x-request-id", b"traceparent", b"tracestate")


class Proxy:
    """An ASGI application for one configuration; its lifespan probes the servers and closes the connections.

    `calls` replaces HTTP where the servers are inside this process; `posts` are further routes: a body in, a
    status and JSON out.
    """

    def __init__(
        self, config: RouterConfig, calls: Calls | None = None, posts: Mapping[str, Post] | None = None
    ) -> None:
        limits = config.limits
        self.router = Router(config, calls)
        self.admission = Admission(limits.concurrency, limits.queue, limits.queue_wait)
        self.metrics = Metrics(self.router.fleet, lambda: (self.admission.inside, self.admission.waiting))
        self.router.on_failure = self.metrics.failed
        self._keys = [key.encode() for key in config.api_keys]
        self._config = config
        self._inside = calls is not None
        self._watches = Watches()
        self._posts = posts or {}
        self._gets: Mapping[str, Callable[[Send], Awaitable[None]]] = {
            "/health": self._health, "/v1/models": self._models, "/info": self._info, "/metrics": self._metrics,
        }  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event of ASGI."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.router.__aenter__()
            self.router.require_usable()
        except Exception as error:
            await self.router.__aexit__()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.router.__aexit__()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        shape = _GENERATION.get(path, "openai")
        begun = False

        async def tracked(message: dict[str, object]) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._dispatch(scope, path, receive, tracked)  # type: ignore[arg-type]
        except ClientGoneError:
            self.metrics.gone()
        except HttpError as error:
            await send_json(send, error.status, error_body(shape, error), error.headers)
        except Exception:
            # A bug in the proxy. The traceback names code, not data; the client gets an error in its own format.
            _LOG.exception("unexpected error at %s", path if path in _GENERATION or path in self._gets else "a path")
            if not begun:
                await send_json(send, 500, error_body(shape, HttpError(500, "internal error")))

    async def _dispatch(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        method: str = scope["method"]
        if path in self._gets and method in ("GET", "HEAD"):
            if path != "/health":
                self._authorise(scope)
            await self._gets[path](send)
        elif path in _GENERATION and method == "POST":
            self._authorise(scope)
            await self._generate(scope, path, _GENERATION[path], receive, send)
        elif path == "/v1/route" and method == "POST":
            self._authorise(scope)
            body = await self._body(scope, receive)
            decision = await self._decided(self._read(scope, "/v1/chat/completions", "openai", body))
            await send_json(send, 200, decision)
        elif path in self._posts and method == "POST":
            self._authorise(scope)
            await send_json(send, *await self._posts[path](await self._body(scope, receive)))
        elif path in self._gets or path in _GENERATION or path in self._posts or path == "/v1/route":
            raise HttpError(405, f"{method:.20} is not allowed here")
        else:
            raise HttpError(404, "no such path", code="not_found")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        return await read_body(scope, receive, self._config.limits.body_bytes)

    def _authorise(self, scope: Scope) -> None:
        if not self._keys:
            return
        given = (header(scope, b"authorization") or b"").removeprefix(b"Bearer ").strip()
        # Compare every key, in constant time.
        right = [hmac.compare_digest(given, key) for key in self._keys]
        if not any(right):
            challenge = ((b"www-authenticate", b"Bearer"),)
            raise HttpError(401, "missing or wrong API key", code="invalid_api_key", headers=challenge)

    async def _generate(self, scope: Scope, path: str, shape: Shape, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        body = await self._body(scope, receive)
        request = self._read(scope, path, shape, body)
        exchange = Exchange(self.router, self.metrics, request, began, split=self._config.thinking == "split")
        task = asyncio.current_task()
        assert task is not None
        gone = False

        def left() -> None:
            nonlocal gone
            if not exchange.done:
                gone = True
                task.cancel()

        watch = self._watches.start(receive, left)
        try:
            await self.admission.enter()
            try:
                await exchange.run(send)
            finally:
                self.admission.leave()
        except OverloadedError as error:
            after = ((b"retry-after", b"%d" % error.retry_after),)
            raise HttpError(429, "too many requests at once", code="overloaded", headers=after) from None
        except asyncio.CancelledError:
            if not gone:
                raise
            task.uncancel()
            raise ClientGoneError from None
        finally:
            exchange.done = True
            watch.stop()

    def _read(self, scope: Scope, path: str, shape: Shape, body: bytes) -> Request:
        headers = {}
        for name, value in scope["headers"]:
            if name in _FORWARDED and value.isascii() and (text := value.decode()).isprintable():
                headers[name.decode()] = text
        headers["content-type"] = "application/json"
        try:
            return read_request(path, shape, body, headers)
        except BadRequestError as error:
            raise HttpError(400 if shape == "openai" else 422, str(error)) from None

    async def _decided(self, request: Request) -> Mapping[str, object]:
        try:
            return (await self.router.decide(request)).as_dict()
        except UnknownModelError as error:
            raise HttpError(404, str(error), code="model_not_found") from None
        except NoVariantError:
            raise HttpError(503, "no server of any variant is usable", code="no_variant") from None

    async def _health(self, send: Send) -> None:
        alive = {r.variant.id: False for r in self.router.fleet.replicas}
        for replica in self.router.fleet.replicas:
            alive[replica.variant.id] |= replica.health == "alive" and replica.usable
        up = any(alive.values())
        await send_json(send, 200 if up else 503, {"status": "ok" if up else "no server answers", "variants": alive})

    async def _models(self, send: Send) -> None:
        served = [variant.id for variant in self._config.variants if self.router.fleet.standing_for(variant.id)]
        ids = ["dami", *served]
        data = [{"id": id, "object": "model", "created": 0, "owned_by": "dami"} for id in ids]
        await send_json(send, 200, {"object": "list", "data": data})

    async def _info(self, send: Send) -> None:
        """Return TGI's `/info` as a TGI server gives it, under the family's name and with the smallest limits.

        It is as old as the last probe; a server inside this process is asked now, which costs nothing.
        """
        if self._inside:
            await self.router.prober.probe_all()
        infos = [r.identity.info for r in self.router.fleet.replicas if r.identity and r.identity.info]
        if not infos:
            raise HttpError(404, "no TGI server answers, so /info has nothing to describe")
        limits = {k: min(i[k] for i in infos if isinstance(i.get(k), int)) for k, v in infos[0].items() if _limit(k, v)}
        ours = {"model_id": self._config.name, "model_sha": None, "router": "dami-router", "version": __version__}
        await send_json(send, 200, {**infos[0], **limits, **ours})

    async def _metrics(self, send: Send) -> None:
        kind = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
        await send_whole(send, 200, [kind], self.metrics.text())


def _limit(key: str, value: object) -> bool:
    return key.startswith("max_") and isinstance(value, int)
