"""`--middleware vllm_dami.http_middleware.DamiMiddleware`: what a server of a pair answers and changes besides vLLM.

- A request's salt, so that prefix caching never mixes two λ.
- `GET /info`: the pair, as `dami live` describes it.
- `GET` and `POST /v1/lambda`: the λ of a server that has one at a time.

It runs in vLLM's API process and imports no vLLM. It logs nothing of a request.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dami_merge.checkpoints.endpoints import Pair, compared
from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.checkpoints.pair_templates import PairTemplates
from dami_merge.live_server.describing import Description
from vllm_dami.pair_settings import UNIFORM, PairSettings
from vllm_dami.request_lambda import LAMBDA, SALT, read_lambda, salt_for
from vllm_dami.uniform_control import LambdaControl

__all__ = ["DamiMiddleware"]

_LOG = logging.getLogger("vllm.dami")
"""A child of vLLM's own logger, whose settings it has."""
_GENERATING = frozenset({
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/invocations",
})  # fmt: skip
"""Routes whose body has `vllm_xargs` and `cache_salt`."""
_WITHOUT_LAMBDA = frozenset({
    "/v1/chat/completions/batch", "/v1/systemone", "/generative_scoring", "/cohere/v2/chat",
})  # fmt: skip
"""Routes that generate, and on which vLLM takes no `vllm_xargs`: they would ignore λ."""


@dataclass(frozen=True)
class ServedPair:
    """What `/info` says of the server."""

    name: str
    endpoints: Pair
    templates: PairTemplates
    max_length: int
    max_rows: int


class DamiMiddleware:
    """An ASGI middleware, outermost in vLLM's server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._settings: PairSettings | None = None
        self._description: Description | None = None
        self._control: LambdaControl | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, or the server's start."""
        if scope["type"] == "lifespan":
            self._start(scope["app"])
        elif scope["type"] == "http" and scope["method"] == "POST":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path in _WITHOUT_LAMBDA:
                return await _refusal(f"{path} has no `vllm_xargs`, and so no λ; use /v1/chat/completions")(
                    scope, receive, send
                )
            if path in _GENERATING:
                return await self._generate(scope, receive, send)
        await self._app(scope, receive, send)

    def _start(self, app: Any) -> None:
        """Add our routes before the server listens; vLLM's own API key guards /v1."""
        config = app.state.vllm_config
        self._settings = settings = PairSettings.of(config.additional_config)
        if config.model_config.architectures[0].startswith(UNIFORM):
            self._control = LambdaControl(app.state.engine_client)
            app.router.add_route("/v1/lambda", self._control.answer, methods=["GET", "POST"])
        self._description = _describe(config, settings)
        self._description.start()
        app.router.add_route("/info", self._info, methods=["GET"])
        if self._control is None:
            _LOG.info("requests without `%s` are answered at %s", LAMBDA, settings.default_text)

    async def _info(self, _: Request) -> JSONResponse:
        assert self._description is not None
        info = self._description.info()
        mode = "request" if self._control is None else "uniform"
        return JSONResponse({**info, "live": {**info["live"], "mode": mode}})

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._settings is not None
        body = await _body(receive, self._settings.max_body)
        if body is None:
            limit = self._settings.max_body
            return await _refusal(f"the body is larger than {limit} bytes", 413)(scope, receive, send)
        try:
            fields = json.loads(body)
            made = json.dumps(self._with_salt(fields)).encode() if isinstance(fields, dict) else body
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            made = body  # vLLM says what is wrong with it
        except ValueError as error:
            return await _refusal(str(error))(scope, receive, send)
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(made)).encode())]}
        await self._app(scope, _replayed(made, receive), send)

    def _with_salt(self, fields: dict[str, Any]) -> Mapping[str, Any]:
        """Return a request's fields with the salt for its λ; raises ValueError for a λ that cannot be served."""
        if fields.get(LAMBDA) is not None:  # vLLM ignores unknown fields, and would answer at another λ
            raise ValueError(f'`{LAMBDA}` is not a field of this API; λ is `vllm_xargs: {{"{LAMBDA}": 0.37}}`')
        xargs = fields.get("vllm_xargs") or {}
        if not isinstance(xargs, dict):
            return fields
        lambda_ = read_lambda(xargs)
        if fields.get("use_beam_search"):
            raise ValueError("`use_beam_search` is not supported: vLLM's beam search drops `vllm_xargs`")
        if self._control is not None:
            self._control.check(lambda_)
        own = fields.get("cache_salt")
        if own is not None and not isinstance(own, str):
            return fields
        made = {**fields, **self._template_arguments(fields, lambda_)}
        salt = salt_for(lambda_, own or "")
        return {**made, "cache_salt": salt, "vllm_xargs": {**xargs, SALT: salt}}

    def _template_arguments(self, fields: Mapping[str, Any], lambda_: float | None) -> Mapping[str, Any]:
        """Return the argument by which a template of both endpoints' chooses: `from(λ)`."""
        assert self._settings is not None
        given = fields.get("chat_template_kwargs") or {}
        if "messages" not in fields or not self._settings.chooses_template or not isinstance(given, dict):
            return {}
        return {"chat_template_kwargs": {**given, "dami_thinking": self._settings.thinks_at(lambda_)}}


def _describe(config: Any, settings: PairSettings) -> Description:
    model = config.model_config
    pair = compared(ModelRef(model.model, model.revision), settings.thinking, None)
    served = model.served_model_name
    name = settings.name or (served[0] if isinstance(served, list) else served) or model.model
    templates = PairTemplates(pair.instruct, pair.thinking, settings.family.thinking_template_from)
    made = ServedPair(name, pair, templates, model.max_model_len, config.scheduler_config.max_num_seqs)
    # Without a reasoning parser, vLLM refuses every request that has `thinking_token_budget`.
    reasoning = config.reasoning_config
    return Description(made, settings.path, "vllm", caps_thinking=bool(reasoning and reasoning.enabled))


async def _body(receive: Receive, limit: int) -> bytes | None:
    """Return a request's body; None if it is larger. A client that leaves has an empty one."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives this body once, and then what the server sends: that the client left."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


def _refusal(message: str, status: int = 400) -> JSONResponse:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return JSONResponse({"error": error}, status_code=status)
