"""The ASGI application: routes, keys, limits, and a watch on the client during every call."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from itertools import count
from typing import Any

from dami_router.config.model_names import unknown_model
from dami_router.config.specs import RouterConfig
from dami_router.messages.pinning import pinned
from dami_router.messages.request import BadRequestError, Request, Shape, read_request
from dami_router.messages.routes import ROUTES, GenerationRoute, canonical
from dami_router.proxy.admission import Admission, OverloadedError
from dami_router.proxy.bodies import read_body
from dami_router.proxy.cors import Cors
from dami_router.proxy.exchange import Exchange
from dami_router.proxy.keys import Keys
from dami_router.proxy.metrics import Metrics
from dami_router.proxy.page_data import PageData
from dami_router.proxy.shadow import Shadowing
from dami_router.proxy.ui import PageFile, page_files
from dami_router.proxy.watching import Watches
from dami_router.proxy.wire import (
    ClientGoneError,
    HttpError,
    Message,
    Receive,
    Scope,
    Send,
    error_body,
    header,
    send_json,
    send_whole,
    start,
)
from dami_router.router import NoVariantError, Router, UnknownModelError
from dami_router.upstream.reply import Calls
from dami_router.version import __version__

__all__ = ["Proxy"]

_LOG = logging.getLogger(__name__)
_PASSED = GenerationRoute("openai")
_LONGEST_ID = 200
Post = Callable[[bytes], Awaitable[tuple[int, object]]]
# Only these headers of the client reach a server; its key never does.
_FORWARDED = frozenset(
    b"content-type accept user-agent x-request-id traceparent tracestate anthropic-version anthropic-beta".split()
)


class Proxy:
    """An ASGI application for one configuration; its lifespan probes the servers and closes the connections.

    `calls` replaces HTTP where the servers are inside this process; `posts` are further routes: a body in, a
    status and JSON out. With `page`, `/ui` answers. `worker` is its number among several processes.
    """

    def __init__(
        self, config: RouterConfig, calls: Calls | None = None, posts: Mapping[str, Post] | None = None,
        page: PageData | None = None, worker: int | None = None,
    ) -> None:  # fmt: skip
        limits = config.limits
        self._ids = (secrets.token_hex(12), count(1))
        self.router = Router(config, calls)
        self.admission = Admission(limits.concurrency, limits.queue, limits.queue_wait)
        self.metrics = Metrics(
            self.router.fleet, lambda: (self.admission.inside, self.admission.waiting), config.expected_tokens, worker
        )
        self._shadow = Shadowing(self.router, config.shadow, self.metrics) if config.shadow else None
        self.router.on_failure = self.metrics.failed
        self._keys, self._cors = Keys(config.api_keys), Cors(config.cors)
        self._posts = posts or {}
        passed = [path for path in config.pass_through if path not in self._posts]
        self._routes = {**ROUTES, **dict.fromkeys(passed, _PASSED)}
        self._config = config
        self._inside = calls is not None
        self._watches = Watches()
        self._forwarded = _FORWARDED | {name.encode() for name in config.affinity.headers}
        self._gets: dict[str, Callable[[Send], Awaitable[None]]] = {
            "/health": self._health, "/v1/models": self._models, "/info": self._info, "/metrics": self._metrics,
        }  # fmt: skip
        self._files: Mapping[str, PageFile] = {}
        if page is not None:
            self._files = page_files()
            self._gets["/ui/data"] = lambda send: send_json(send, 200, page.family(self.router))
            self._gets["/ui/now"] = lambda send: send_json(send, 200, page.now(self.router, self.metrics.registry))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event of ASGI."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
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
        if self._shadow is not None:
            await self._shadow.stop()
        await self.router.__aexit__()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = canonical(scope["path"])
        shape: Shape = self._routes[path].shape if path in self._routes else "openai"
        id = self._id(scope)
        ours = [(b"x-request-id", id.encode()), *self._cors.headers(scope)]
        begun = False

        def tracked(message: Message) -> Awaitable[None]:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message["headers"], *ours]
            return send(message)

        try:
            await self._handling(scope, path, id, receive, tracked)
        except ClientGoneError:
            self.metrics.gone()
        except HttpError as error:
            if error.status >= 500:
                _LOG.warning("request %s: %d %s", id, error.status, error.message)
            await send_json(tracked, error.status, error_body(shape, error), error.headers)
        except Exception:
            # A bug in the proxy. The traceback names code, not data; the client gets an error in its own format.
            known = path in self._routes or path in self._gets
            _LOG.exception("request %s: unexpected error at %s", id, path if known else "a path")
            if not begun:
                await send_json(tracked, 500, error_body(shape, HttpError(500, "internal error")))

    def _id(self, scope: Scope) -> str:
        """Return the client's request id, or a new one where it sent none that can be passed on."""
        given = header(scope, b"x-request-id")
        if given and len(given) <= _LONGEST_ID and given.isascii() and (text := given.decode()).isprintable():
            return text
        beginning, number = self._ids
        return f"{beginning}{next(number):08x}"

    def _handling(self, scope: Scope, path: str, id: str, receive: Receive, send: Send) -> Awaitable[None]:
        """Return what answers a request; raises HttpError 401 where its key is not right."""
        method: str = scope["method"]
        posts, gets = method == "POST", method in ("GET", "HEAD")
        if posts and path in self._routes:
            self._keys.require(scope)
            return self._generate(scope, path, id, receive, send)
        if gets and path == "/health":
            return self._health(send)
        if gets and path in self._gets:
            self._keys.require(scope)
            return self._gets[path](send)
        if gets and path.startswith("/v1/models/"):
            self._keys.require(scope)
            return self._model(path.removeprefix("/v1/models/"), send)
        if posts and path == "/v1/route":
            self._keys.require(scope)
            return self._route(scope, id, receive, send)
        if posts and path in self._posts:
            self._keys.require(scope)
            return self._post(scope, path, receive, send)
        if gets and path in self._files:
            return self._files[path].send(scope, send)
        return self._otherwise(scope, path, send)

    async def _route(self, scope: Scope, id: str, receive: Receive, send: Send) -> None:
        body = await self._body(scope, receive)
        await send_json(send, 200, await self._decided(self._read(scope, "/v1/chat/completions", id, body)))

    async def _post(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        await send_json(send, *await self._posts[path](await self._body(scope, receive)))

    async def _otherwise(self, scope: Scope, path: str, send: Send) -> None:
        """Answer OPTIONS, and refuse what no route takes; raises HttpError 404, 405."""
        method: str = scope["method"]
        posts = path in self._routes or path in self._posts or path == "/v1/route"
        gets = path in self._gets or path in self._files or path.startswith("/v1/models/")
        if not posts and not gets:
            raise HttpError(404, "no such path", code="not_found")
        allowed = (b"allow", ", ".join([*["GET", "HEAD"] * gets, *["POST"] * posts, "OPTIONS"]).encode())
        if method != "OPTIONS":
            raise HttpError(405, f"{method:.20} is not allowed here", headers=(allowed,))
        await start(send, 204, [allowed, *self._cors.preflight(scope)])
        await send({"type": "http.response.body", "body": b""})

    def _body(self, scope: Scope, receive: Receive) -> Coroutine[Any, Any, bytes]:
        limits = self._config.limits
        return read_body(scope, receive, limits.body_bytes, limits.body_s)

    async def _generate(self, scope: Scope, path: str, id: str, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        needed = self._routes[path].protocols
        if needed is not None and not any(needed & replica.dialects for replica in self.router.fleet.replicas):
            listed = " or ".join(_named(protocol) for protocol in sorted(needed, reverse=True))
            raise HttpError(404, f"no backend has this route: it needs one of protocol {listed}", code="not_found")
        body = await self._body(scope, receive)
        request = self._read(scope, path, id, body)
        exchange = Exchange(
            self.router, self.metrics, request, began, split=self._config.thinking == "split", shadow=self._shadow
        )
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

    def _read(self, scope: Scope, path: str, id: str, body: bytes) -> Request:
        headers = {}
        shape = self._routes[path].shape
        for name, value in scope["headers"]:
            if name in self._forwarded and value.isascii() and (text := value.decode()).isprintable():
                headers[name.decode()] = text
        headers["content-type"] = "application/json"
        headers["x-request-id"] = id
        try:
            return read_request(path, shape, body, headers, self._config.hints)
        except BadRequestError as error:
            raise HttpError(422 if shape == "tgi" else 400, str(error)) from None

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
        await send_json(send, 200, {"object": "list", "data": [_model(id) for id in self.router.model_names()]})

    async def _model(self, id: str, send: Send) -> None:
        names = self.router.model_names()
        if id not in names and pinned(id) is None and self._config.preset(id) is None:
            raise HttpError(404, unknown_model(id, names), code="model_not_found")
        await send_json(send, 200, _model(id))

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
        if infos[0].get("engine") == "vllm":
            ours["engine"] = "router"  # which reads λ from the model's name, as a router in front of it must know
        await send_json(send, 200, {**infos[0], **limits, **ours})

    async def _metrics(self, send: Send) -> None:
        kind = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
        await send_whole(send, 200, [kind], self.metrics.text())


def _named(dialect: str) -> str:
    return "`live` with the engine vLLM" if dialect == "vllm" else f"`{dialect}`"


def _model(id: str) -> Mapping[str, object]:
    return {"id": id, "object": "model", "created": 0, "owned_by": "dami"}


def _limit(key: str, value: object) -> bool:
    return key.startswith("max_") and isinstance(value, int)
