"""The table of thinking budgets: which cap a request gets, and which servers are told."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.upstream import Call, Upstream, chat, send
from fakes.waiting import until
from fakes.world import Client, World

from dami_router.choosing.thinking_caps import ThinkingCaps
from dami_router.config.router_yml import parse_config
from dami_router.errors import RecipeError
from dami_router.messages.request import read_request

TABLE = "thinking_budget: {0.4: 256, 1: 4096, low: 64}\n"
FIELD = "thinking_token_budget"


class Vllm(Upstream):
    """Treats the field as vLLM does: checks it, and refuses it without a reasoning parser. Others ignore it."""

    def __init__(self, name: str, *, kind: str) -> None:
        super().__init__(self._chat, models={"object": "list", "data": [{"id": name, "object": "model"}]})
        self.kind = kind

    async def _chat(self, call: Call, writer: Any) -> None:
        budget = call.json.get(FIELD)
        wrong = budget is not None and (self.kind == "no parser" or not isinstance(budget, int))
        await send(writer, 400 if wrong and self.kind != "another" else 200, {} if wrong else chat())

    @property
    def real(self) -> list[Any]:
        """The requests of clients: those that are not of one token."""
        return [call.json for call in self.calls if call.json.get("max_tokens") != 1]


def client(world: World, *servers: tuple[str, Vllm]) -> Client:
    made = world.router(*servers, extra=TABLE)
    replicas = made.app.router.fleet.replicas
    until(lambda: all(replica.can("thinking_budget") is not None for replica in replicas))
    return made


def test_a_request_gets_the_cap_of_its_effort_else_of_its_lambda(world: World) -> None:
    """Also by a preset; a client's own cap, and the rest of the body, stay as they are."""
    low, high = Vllm("v-l000", kind="vllm"), Vllm("v-l100", kind="vllm")
    proxy = client(world, ("v-l000", world.start(low)), ("v-l100", world.start(high)))
    proxy.chat(model="dami:0")
    proxy.chat(model="dami:1", temperature=0.5)
    proxy.chat(model="dami:low")
    proxy.chat(reasoning_effort="high")
    proxy.chat(model="dami:1", thinking_token_budget=7)
    assert [sent[FIELD] for sent in low.real] == [256, 64]
    assert [sent[FIELD] for sent in high.real] == [4096, 4096, 7]
    assert (high.real[0]["temperature"], high.real[0]["model"]) == (0.5, "v-l100")


@pytest.mark.parametrize("kind", ["another", "no parser"])
def test_servers_without_the_limit_get_the_request_as_it_is(world: World, kind: str) -> None:
    """One that ignores the field, and a vLLM that would refuse it."""
    server = Vllm("v-l000", kind=kind)
    proxy = client(world, ("v-l000", world.start(server)))
    assert proxy.chat().status == 200
    assert FIELD not in server.real[0]


def test_other_routes_are_not_touched(world: World) -> None:
    """The field is one of chats and completions."""
    server = Vllm("v-l000", kind="vllm")
    proxy = client(world, ("v-l000", world.start(server)))
    proxy.post("/v1/responses", {"model": "dami", "input": "q"})
    proxy.post("/v1/completions", {"model": "dami", "prompt": "q"})
    assert [FIELD in sent for sent in server.real] == [False, True]


@pytest.mark.parametrize(
    ("lambda_", "effort", "cap"),
    [(0.0, None, 1), (0.3, None, 1), (0.3000001, None, 1), (0.31, None, 2), (0.6, None, 2), (0.61, None, None),
     (0.9, "high", 9), (0.1, "low", 1)],
)  # fmt: skip
def test_the_cap_is_that_of_the_smallest_lambda_not_below(lambda_: float, effort: str | None, cap: int | None) -> None:
    """Above the largest λ of the table there is none; an effort of the table comes first."""
    assert ThinkingCaps({0.6: 2, 0.3: 1}, {"high": 9}).of(lambda_, effort) == cap


@pytest.mark.parametrize(
    "body", [b'{"model":"a","x":1}', b" { } ", b'{"messages": [], "model" : "dami", "model": "b"}']
)
def test_a_member_is_added_and_the_model_still_found(body: bytes) -> None:
    """Wherever `model` is, its value is replaced afterwards; a member that is there stays."""
    request = read_request("/v1/chat/completions", "openai", body).adding("limit", 5)
    sent = read_request("/v1/chat/completions", "openai", request.body_for("m"))
    assert (sent.model, sent.members("limit")) == ("m", {"limit": 5})
    assert request.adding("limit", 6) is request


@pytest.mark.parametrize("table", ["{2: 5}", "{often: 5}", "{0.5: -1}", "{0.5: many}", "[5]"])
def test_a_table_that_means_nothing_is_refused(table: str) -> None:
    """With the place in router.yml."""
    text = "variants: [{id: a, lambda: 0}]\nbackends: [{variant: a, url: 'http://h', protocol: openai}]\n"
    with pytest.raises(RecipeError, match="thinking_budget"):
        parse_config(f"{text}thinking_budget: {table}")
