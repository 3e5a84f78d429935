"""The middleware over a small application in vLLM's place, which says what reaches it; the pair is the lab's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from dami_merge.lab import copy_pair
from vllm_dami.http_middleware import DamiMiddleware
from vllm_dami.request_lambda import SALT, salt_for, salted


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the lab pair."""
    folder = tmp_path_factory.mktemp("lab")
    copy_pair(folder)
    return folder


class EngineClient:
    """Stands in for vLLM's engine client, which cannot run here: it writes down what it is asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails = False

    async def pause_generation(self, **options: Any) -> None:
        self.calls.append(("pause", options))

    async def resume_generation(self) -> None:
        self.calls.append(("resume",))

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> None:
        self.calls.append((method, *args))
        if self.fails:
            raise RuntimeError("a worker died")


class Server:
    """The application behind the middleware; one event loop, requests one after the other."""

    def __init__(
        self, lab: Path, architecture: str = "DamiQwen3ForCausalLM", *, reasoning: bool = False, **settings: Any
    ) -> None:
        self.seen: list[dict[str, Any]] = []
        self.engine = EngineClient()
        routes = [Route(path, self._echo, methods=["POST"]) for path in ("/v1/chat/completions", "/v1/completions")]
        self.app = Starlette(routes=routes, middleware=[Middleware(DamiMiddleware)])
        model = SimpleNamespace(
            model=str(lab / "instruct"), revision=None, served_model_name=["lab"], architectures=[architecture],
            max_model_len=256,
        )  # fmt: skip
        self.app.state.vllm_config = SimpleNamespace(
            additional_config={"dami": {"thinking": str(lab / "thinking"), **settings}}, model_config=model,
            scheduler_config=SimpleNamespace(max_num_seqs=8),
            reasoning_config=SimpleNamespace(enabled=True) if reasoning else None,
        )  # fmt: skip
        self.app.state.engine_client = self.engine
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._start())

    async def _echo(self, request: Request) -> JSONResponse:
        body = await request.body()
        assert int(request.headers["content-length"]) == len(body)
        try:
            self.seen.append(json.loads(body))
        except (ValueError, RecursionError):
            return JSONResponse({"raw": len(body)}, status_code=422)
        return JSONResponse({})

    async def _start(self) -> None:
        messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

        async def receive() -> dict[str, Any]:
            return next(messages)

        async def send(message: Any) -> None:
            assert "failed" not in message["type"], message

        await self.app({"type": "lifespan", "state": {}}, receive, send)

    def ask(self, method: str, path: str, body: bytes = b"", pieces: int = 1) -> tuple[int, Any]:
        """Send one request, its body in some pieces; returns status and JSON."""
        size = max(1, -(-len(body) // pieces))
        parts = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
        waiting = [
            {"type": "http.request", "body": part, "more_body": i < len(parts) - 1} for i, part in enumerate(parts)
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            return waiting.pop(0) if waiting else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "headers": [(b"content-length", str(len(body)).encode())], "http_version": "1.1",
            "scheme": "http", "server": ("x", 1), "client": ("x", 2),
        }  # fmt: skip
        self.loop.run_until_complete(self.app(scope, receive, send))
        reply = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], json.loads(reply) if reply.startswith(b"{") else None

    def post(self, path: str, **fields: Any) -> tuple[int, Any]:
        return self.ask("POST", path, json.dumps(fields).encode())


@pytest.fixture
def server(lab: Path) -> Iterator[Server]:
    """A server with λ per request."""
    made = Server(lab)
    yield made
    made.loop.close()


@pytest.fixture
def uniform(lab: Path) -> Iterator[Server]:
    """A server with one λ at a time."""
    made = Server(lab, "DamiUniformQwen3ForCausalLM")
    yield made
    made.loop.close()


def test_the_pair_is_described_as_dami_live_describes_it(server: Server) -> None:
    """/info has the names and hashes of both endpoints, the path, and which engine it is."""
    status, info = server.ask("GET", "/info")
    assert (status, info["engine"], info["model_id"], info["max_total_tokens"]) == (200, "vllm", "lab", 256)
    live = info["live"]
    assert live["mode"] == "request"
    assert [live[side]["name"] for side in ("instruct", "thinking")] == ["instruct", "thinking"]
    assert (live["path"], live["max_rows"], live["capabilities"]["chat_template"]) == ("uniform", 8, True)


@pytest.mark.parametrize("reasoning", [False, True])
def test_thinking_can_be_capped_only_where_vllm_parses_reasoning(lab: Path, reasoning: bool) -> None:
    """Without a reasoning parser vLLM refuses `thinking_token_budget`, so /info does not offer it."""
    server = Server(lab, reasoning=reasoning)
    able = server.ask("GET", "/info")[1]["live"]["capabilities"]
    assert able["thinking_budget"] is reasoning
    server.loop.close()


@pytest.mark.parametrize("lambda_", [0, 0.37, 1, None])
def test_a_request_gets_the_salt_for_its_lambda(server: Server, lambda_: float | None) -> None:
    """Everything else of the body reaches vLLM as it was sent."""
    xargs = {} if lambda_ is None else {"lambda": lambda_}
    assert server.post("/v1/completions", prompt="λ", seed=3, vllm_xargs=xargs)[0] == 200
    got = server.seen[0]
    assert salted(got["vllm_xargs"], None if lambda_ is None else float(lambda_))
    assert got.pop("cache_salt") == got["vllm_xargs"].pop(SALT)
    assert got == {"prompt": "λ", "seed": 3, "vllm_xargs": xargs}


def test_a_forged_salt_is_replaced(server: Server) -> None:
    """A client cannot claim another λ's salt; its own salt still separates it from other clients."""
    xargs = {"lambda": 0.5, SALT: salt_for(0.9)}
    server.post("/v1/completions", prompt="x", vllm_xargs=xargs, cache_salt=salt_for(0.9))
    assert server.seen[0]["cache_salt"] == salt_for(0.5, salt_for(0.9))
    assert server.seen[0]["vllm_xargs"][SALT] == server.seen[0]["cache_salt"]


@pytest.mark.parametrize("lambda_", [1.5, -1, "x", float("nan"), True])
def test_a_bad_lambda_is_a_400(server: Server, lambda_: object) -> None:
    """In our words, before vLLM sees the request."""
    status, reply = server.post("/v1/chat/completions", messages=[], vllm_xargs={"lambda": lambda_})
    assert (status, server.seen) == (400, [])
    assert "`lambda` must be" in reply["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions/batch", "/generative_scoring", "/v1/systemone"])
def test_routes_that_would_ignore_lambda_are_refused(server: Server, path: str) -> None:
    """They generate and take no λ, so they would answer at another one."""
    assert server.post(path, messages=[])[0] == 400


def test_a_lambda_beside_vllms_arguments_is_refused(server: Server) -> None:
    """vLLM ignores fields that it does not know, and would answer at another λ: the message says where λ stands."""
    status, reply = server.post("/v1/chat/completions", messages=[], **{"lambda": 0.3})
    assert status == 400
    assert 'λ is `vllm_xargs: {"lambda": 0.37}`' in reply["error"]["message"]
    assert server.seen == []


def test_beam_search_is_refused(server: Server) -> None:
    """vLLM's beam search makes requests of its own, which have no λ."""
    assert server.post("/v1/completions", prompt="x", use_beam_search=True)[0] == 400


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"\xff", b"[" * 100_000, b'{"vllm_xargs": 3}'])
def test_a_body_that_is_no_request_is_vllms_to_refuse(server: Server, body: bytes) -> None:
    """It reaches vLLM as it was sent, without a salt."""
    assert server.ask("POST", "/v1/completions", body)[0] in (200, 422)
    assert all(not isinstance(got, dict) or "cache_salt" not in got for got in server.seen)


def test_bodies_are_bounded_and_may_come_in_pieces(lab: Path) -> None:
    """One byte too many is a 413, however it arrives."""
    body = json.dumps({"prompt": "x" * 500}).encode()
    for limit, wanted in ((len(body), 200), (len(body) - 1, 413)):
        server = Server(lab, max_body=limit)
        assert {server.ask("POST", "/v1/completions", body, pieces)[0] for pieces in (1, 7)} == {wanted}
        server.loop.close()


def test_a_template_that_depends_on_lambda(lab: Path) -> None:
    """With from(λ), chats carry which half of the template they get; texts and other arguments are left alone."""
    server = Server(lab, chat_template="from(0.6)")
    for lambda_, wanted in ((0.5, False), (0.6, True)):
        xargs = {"lambda": lambda_}
        server.post("/v1/chat/completions", messages=[], vllm_xargs=xargs, chat_template_kwargs={"a": 1})
        assert server.seen[-1]["chat_template_kwargs"] == {"a": 1, "dami_thinking": wanted}
    server.post("/v1/completions", prompt="x")
    assert "chat_template_kwargs" not in server.seen[-1]
    server.loop.close()


def test_lambda_is_set_between_requests(uniform: Server) -> None:
    """Requests are paused, the weights change, the cache is cleared, and requests go on; finish or stop, by choice."""
    assert uniform.ask("GET", "/v1/lambda") == (200, {"lambda": None})
    assert uniform.post("/v1/lambda", **{"lambda": 0.6}) == (200, {"lambda": 0.6})
    wanted = [("pause", {"mode": "wait", "clear_cache": True}), ("set_lambda", 0.6), ("resume",)]
    assert uniform.engine.calls == wanted
    uniform.post("/v1/lambda", **{"lambda": 0, "requests": "stop"})
    assert uniform.engine.calls[3] == ("pause", {"mode": "abort", "clear_cache": True})
    assert uniform.ask("GET", "/v1/lambda") == (200, {"lambda": 0.0})


@pytest.mark.parametrize(
    "fields", [{}, {"lambda": 2}, {"lambda": "x"}, {"lambda": None}, {"lambda": 0.5, "requests": "kill"}]
)
def test_a_bad_order_changes_nothing(uniform: Server, fields: dict[str, Any]) -> None:
    """It is a 400, and no request is paused."""
    assert uniform.post("/v1/lambda", **fields)[0] == 400
    assert uniform.ask("POST", "/v1/lambda", b"{" * 70_000)[0] == 400
    assert uniform.engine.calls == []


def test_requests_go_on_when_the_weights_do_not_change(uniform: Server) -> None:
    """A worker that fails leaves the λ as it was told before, and the server is not left paused."""
    uniform.engine.fails = True
    status, reply = uniform.post("/v1/lambda", **{"lambda": 0.6})
    assert (status, reply["error"]["message"]) == (500, "λ was not set: a worker died")
    assert uniform.engine.calls[-1] == ("resume",)
    assert uniform.ask("GET", "/v1/lambda") == (200, {"lambda": None})


def test_a_server_of_one_lambda_refuses_another(uniform: Server) -> None:
    """A request may name the λ that is served, or none."""
    uniform.post("/v1/lambda", **{"lambda": 0.6})
    assert [uniform.post("/v1/completions", prompt="x", vllm_xargs={"lambda": x})[0] for x in (0.6, 0.7)] == [200, 400]
    assert uniform.post("/v1/completions", prompt="x")[0] == 200


def test_lambda_cannot_be_set_where_each_request_has_its_own(server: Server) -> None:
    """The route is there only where it does something."""
    assert server.ask("GET", "/v1/lambda")[0] == 404
