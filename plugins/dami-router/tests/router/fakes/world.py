"""A world of servers and proxies that ends with its test, and a plain client."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from dami_router.config.router_yml import parse_config
from dami_router.proxy import Proxy
from dami_router.proxy.server import settings
from fakes.live import FakeLive
from fakes.loop import Loop
from fakes.tgi import FakeTgi
from fakes.upstream import Script, Upstream
from fakes.waiting import happened


@dataclass
class Answer:
    """A whole reply."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def variant(self) -> str:
        return self.headers["x-dami-variant"]


@dataclass
class Client:
    """A plain blocking HTTP client for one proxy."""

    port: int
    app: Proxy

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, data: Any, **headers: str) -> Answer:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        return self.call("POST", path, body, {"content-type": "application/json", **headers})

    def get(self, path: str, **headers: str) -> Answer:
        return self.call("GET", path, None, headers)

    def call(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=150)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            reply = connection.getresponse()
            return Answer(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def chat(self, text: str = "2+2?", **fields: Any) -> Answer:
        return self.post(
            "/v1/chat/completions", {"model": "dami", "messages": [{"role": "user", "content": text}], **fields}
        )

    def metric(self, line: str) -> float:
        """Return the value of a line of /metrics; 0 where it is not there."""
        for found in self.get("/metrics").body.decode().splitlines():
            if found.startswith(line + " "):
                return float(found.rsplit(" ", 1)[1])
        return 0.0


class World:
    """Starts servers and proxies in a loop; everything ends with the test."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._upstreams: list[Upstream] = []
        self._proxies: list[tuple[uvicorn.Server, asyncio.Task[Any]]] = []

    @classmethod
    @contextmanager
    def alone(cls) -> Iterator[World]:
        """A world with a loop of its own, for tests that share none."""
        loop = Loop()
        made = cls(loop)
        yield made
        made.close()
        loop.stop()

    def upstream(self, name: str, script: Script | None = None) -> Upstream:
        """Start an OpenAI-compatible server that serves `name`."""
        return self.start(Upstream(script, models={"object": "list", "data": [{"id": name, "object": "model"}]}))

    def tgi(self, name: str, **options: Any) -> FakeTgi:
        """Start a strict fake TGI."""
        return self.start(FakeTgi(name, **options))

    def live(self, script: Script | None = None, **described: Any) -> FakeLive:
        """Start a fake live server."""
        return self.start(FakeLive(script, **described))

    def start(self, server: Any) -> Any:
        """Start a server that ends with the test."""
        self.loop.run(server.start())
        self._upstreams.append(server)
        return server

    def pair(self, first: Script | None = None, second: Script | None = None) -> tuple[Upstream, Upstream]:
        """Start `v-l000` and `v-l100`."""
        return self.upstream("v-l000", first), self.upstream("v-l100", second)

    def proxy(self, text: str, environment: Mapping[str, str] | None = None) -> Client:
        """Start a proxy with a configuration."""
        return self.serve(Proxy(parse_config(patient(text), environment or {})))

    def serve(self, app: Proxy) -> Client:
        """Start a proxy's application as `dami serve` does."""
        server = uvicorn.Server(
            settings(app, "127.0.0.1", 0, app.router.config.limits.model_copy(update={"drain": 2.0}))
        )
        task = self.loop.start(server.serve())
        self._proxies.append((server, task))
        self.loop.run(happened(lambda: server.started or task.done(), pause=0.005))
        assert server.started, "the proxy did not start"
        return Client(server.servers[0].sockets[0].getsockname()[1], app)

    def router(
        self, *backends: tuple[str, Upstream], extra: str = "", environment: Mapping[str, str] | None = None
    ) -> Client:
        """Start a proxy over (variant, server) pairs; a variant's λ is the number in its name."""
        return self.proxy(router_yml(*backends, extra=extra), environment)

    def close(self) -> None:
        for server, task in self._proxies:
            server.should_exit = True
            self.loop.run(asyncio.wait_for(_join(task), 60))
        for upstream in self._upstreams:
            self.loop.run(upstream.stop())


def router_yml(*backends: tuple[str, Upstream], extra: str = "") -> str:
    """Return a configuration with long limits and short pauses, for tests. The name `live` is no variant."""
    variants = sorted({name for name, _ in backends} - {"live"})
    lines = ["variants:"] if variants else []
    lines += [f"  - {{id: {name}, lambda: {int(name[-3:]) / 100:g}}}" for name in variants]
    lines += ["backends:"]
    for name, server in backends:
        if name == "live":
            lines.append(f'  - {{url: "{server.url}", protocol: live}}')
            continue
        protocol = "tgi" if isinstance(server, FakeTgi) else "openai"
        lines.append(f'  - {{variant: {name}, url: "{server.url}", protocol: {protocol}}}')
    lines.append("retries: {backoff: 0.001}")
    return patient("\n".join([*lines, extra]))


def patient(text: str) -> str:
    """Give a configuration long limits where it sets none: how fast the machine is decides no test."""
    missing = {
        "timeouts": "{connect: 20, first_byte: 120, idle: 120, total: 120}",
        "probe": "{timeout: 20}",
    }
    return "\n".join([text, *(f"{key}: {limits}" for key, limits in missing.items() if f"\n{key}:" not in text)])


async def _join(task: asyncio.Task[Any]) -> None:
    await asyncio.wait([task])
