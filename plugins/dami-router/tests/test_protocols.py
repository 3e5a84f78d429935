"""Asking servers who they are and what they can do, in each protocol: every shape of a reply, right and wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dami_router.backends.backend import Identity, ProbeError, Reader, WrongIdentityError, matches
from dami_router.backends.live_protocol import LiveReader
from dami_router.backends.openai_protocol import OpenAIReader
from dami_router.backends.tgi_protocol import TgiReader
from dami_router.config.specs import BackendSpec, VariantSpec
from dami_router.manifest.pair import EndpointSpec, PairSpec

VARIANT = VariantSpec("fam-l050", 0.5, frozenset({"fam-l050", "org/fam-l050"}))
BACKEND = BackendSpec("fam-l050", "http://h:1", "openai")
Replies = Mapping[str, tuple[int, Any]]


def identify(
    reader: Reader, replies: Replies, backend: BackendSpec = BACKEND, variant: VariantSpec = VARIANT
) -> Identity:
    """Identify a server that gives these replies by path; any other path is 404."""

    async def get(path: str) -> tuple[int, Any]:
        return replies.get(path, (404, None))

    return asyncio.run(reader.identify(backend, variant, get))


def explore(reader: Reader, replies: Replies) -> tuple[Mapping[str, bool | None], dict[str, Any]]:
    """Explore a server; return what it can do, and what it was sent by path."""
    sent: dict[str, Any] = {}

    async def post(path: str, data: Mapping[str, Any]) -> tuple[int, Any]:
        sent[path] = data
        return replies.get(path, (404, None))

    return asyncio.run(reader.explore(Identity("m"), post)), sent


def models(*entries: dict[str, Any]) -> Replies:
    return {"/v1/models": (200, {"object": "list", "data": list(entries)})}


@pytest.mark.parametrize(
    ("name", "is_it"),
    [("fam-l050", True), ("org/fam-l050", True), ("/models/fam-l050", True), ("/models/fam-l050/", True),
     ("fam-l051", False), ("fam-l050X", False), ("", False), ("/", False)],
)  # fmt: skip
def test_a_server_may_call_a_variant_by_id_or_by_folder(name: str, is_it: bool) -> None:
    """The id, a repository's name, or a path that ends in it; with `model` configured, that name alone."""
    assert matches(name, BACKEND, VARIANT) == is_it
    assert not matches(name, replace(BACKEND, model="other"), VARIANT)
    assert matches("other", replace(BACKEND, model="other"), VARIANT)


@pytest.mark.parametrize(
    "body",
    [
        {"data": [{"id": "fam-l050"}]}, [{"id": "fam-l050"}], {"id": "fam-l050"},
        {"data": [{"id": "x"}, 3, {"id": 4}, {"id": "fam-l050"}]}, {"data": [{"id": "fam-l050", "root": "fam-l050"}]},
        {"data": [{"id": "fam-l050", "root": ""}]}, {"data": [{"id": "fam-l050", "root": "/models/fam-l050"}]},
    ],
)  # fmt: skip
def test_an_openai_server_lists_the_variant(body: Any) -> None:
    """Under `data`, as a bare list, or as one object; vLLM's `root` may be its path."""
    assert identify(OpenAIReader(), {"/v1/models": (200, body)}) == Identity("fam-l050")


def test_an_alias_is_told_by_its_root() -> None:
    """An alias whose root is the variant is asked for by its own name; a root of something else is a wrong model."""
    assert identify(OpenAIReader(), models({"id": "gpt", "root": "/m/fam-l050"})) == Identity("gpt")
    assert identify(OpenAIReader(), models({"id": "org/fam-l050", "root": "fam-l050"})) == Identity("org/fam-l050")
    with pytest.raises(WrongIdentityError, match=r"fam-l050 \(root /m/other\)"):
        identify(OpenAIReader(), models({"id": "fam-l050", "root": "/m/other"}))
    named = replace(BACKEND, model="fam-l050")
    assert identify(OpenAIReader(), models({"id": "fam-l050", "root": "/m/other"}), named) == Identity("fam-l050")


def test_another_model_is_named_beside_the_expected_one() -> None:
    """The message says what is served and what was expected; nothing served is said too, and long lists are cut."""
    with pytest.raises(WrongIdentityError, match=r"^serves a, b, expected fam-l050 or org/fam-l050$"):
        identify(OpenAIReader(), models({"id": "a"}, {"id": "b"}))
    with pytest.raises(WrongIdentityError, match=r"^serves nothing, expected x$"):
        identify(OpenAIReader(), models(), replace(BACKEND, model="x"))
    with pytest.raises(WrongIdentityError) as caught:
        identify(OpenAIReader(), models(*({"id": f"{i}" * 100} for i in range(10, 30))))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "reply", [(200, None), (200, 3), (200, {}), (200, {"data": {}}), (500, {"data": []}), (404, None)]
)
def test_what_lists_no_models_is_no_openai_server(reply: tuple[int, Any]) -> None:
    """Other statuses and shapes are a failed probe with the status, not a wrong model."""
    with pytest.raises(ProbeError, match=rf"status {reply[0]}"):
        identify(OpenAIReader(), {"/v1/models": reply})


def test_without_identity_a_living_server_is_believed() -> None:
    """`identity: false`: /health or /v1/models with 200 is enough, and the name is the configured one."""
    trusting = replace(BACKEND, identity=False)
    assert identify(OpenAIReader(), {"/health": (200, None)}, trusting) == Identity("fam-l050")
    assert identify(OpenAIReader(), models(), replace(trusting, model="x")) == Identity("x")
    with pytest.raises(ProbeError, match="status 404"):
        identify(OpenAIReader(), {"/health": (503, None)}, trusting)


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ONE = [{"role": "user", "content": "1"}]


@pytest.mark.parametrize(
    ("replies", "able"),
    [
        ({CHAT: (200, {"choices": [{"logprobs": {"content": [{"top_logprobs": [1]}]}}]}),
          TEXT: (200, {"choices": [{"prompt_logprobs": [None, {}]}]})}, (True, True, True, True)),
        ({CHAT: (200, {"choices": [{"logprobs": {"content": [{"top_logprobs": []}]}}]})}, (True, False, False, True)),
        ({CHAT: (200, {"choices": [{"logprobs": None}]}), TEXT: (200, {"choices": []})}, (False, False, False, True)),
        ({CHAT: (200, {"choices": [{"logprobs": {"content": [3]}}]})}, (True, False, False, True)),
        ({CHAT: (400, {"error": "no template"}), TEXT: (500, {"choices": [{"prompt_logprobs": [1]}]})},
         (False, False, False, False)),
        ({}, (False, False, False, False)),
    ],
)  # fmt: skip
def test_an_openai_server_shows_what_it_can(replies: Replies, able: tuple[bool, ...]) -> None:
    """One token as chat and as text, asked greedily for the model that was found."""
    found, sent = explore(OpenAIReader(), replies)
    assert tuple(found[k] for k in ("log_probs", "prompt_log_probs", "top_n", "chat_template")) == able
    short = {"model": "m", "max_tokens": 1, "temperature": 0}
    assert sent == {
        CHAT: {**short, "messages": ONE, "logprobs": True, "top_logprobs": 2},
        TEXT: {**short, "prompt": "1", "prompt_logprobs": 0},
    }


def tgi(**info: Any) -> Replies:
    return {"/health": (200, None), "/info": (200, info)}


def test_tgi_is_told_by_its_info() -> None:
    """Name and commit; without a commit on one side, the name alone."""
    sha = "a" * 40
    found = identify(TgiReader(), tgi(model_id="org/fam-l050", model_sha=sha, version="3"))
    assert (found.model, found.revision, found.info["version"]) == ("org/fam-l050", sha, "3")
    for unknown in (None, 7):
        assert identify(TgiReader(), tgi(model_id="/m/fam-l050", model_sha=unknown)).revision is None
    pinned = replace(VARIANT, revision=sha)
    assert identify(TgiReader(), tgi(model_id="fam-l050", model_sha=sha), variant=pinned).revision == sha
    assert identify(TgiReader(), tgi(model_id="fam-l050"), variant=pinned).revision is None


def test_tgi_with_another_model_or_commit_is_wrong() -> None:
    """The message has both names, or both commits; `identity: false` believes either."""
    other = tgi(model_id="org/other")
    with pytest.raises(WrongIdentityError, match=r"^serves org/other, expected fam-l050 or org/fam-l050$"):
        identify(TgiReader(), other)
    pinned, moved = replace(VARIANT, revision="a" * 40), tgi(model_id="fam-l050", model_sha="b" * 40)
    with pytest.raises(WrongIdentityError, match=r"commit bbbb.*, expected aaaa"):
        identify(TgiReader(), moved, variant=pinned)
    trusting = replace(BACKEND, identity=False)
    assert identify(TgiReader(), other, trusting).model == "org/other"
    assert identify(TgiReader(), moved, trusting, pinned).revision == "b" * 40


@pytest.mark.parametrize(
    ("replies", "says"),
    [
        ({"/health": (503, None)}, "/health returned status 503"),
        ({"/health": (200, None)}, "/info .status 404."),
        ({"/health": (200, None), "/info": (500, {"model_id": "fam-l050"})}, "/info .status 500."),
        ({"/health": (200, None), "/info": (200, {"model_id": 3})}, "no model_id"),
        ({"/health": (200, None), "/info": (200, [])}, "no model_id"),
    ],
)
def test_what_is_no_tgi_is_a_failed_probe(replies: Replies, says: str) -> None:
    """The message names the route and the status."""
    with pytest.raises(ProbeError, match=says):
        identify(TgiReader(), replies)


@pytest.mark.parametrize(
    ("replies", "able"),
    [
        ({"/generate": (200, {"details": {"tokens": [{"logprob": -1}], "prefill": [1], "top_tokens": [[1]]}}),
          CHAT: (200, {})}, (True, True, True, True)),
        ({"/generate": (200, {"details": {"tokens": [{"logprob": -1}], "prefill": [], "top_tokens": []}})},
         (True, False, False, False)),
        ({"/generate": (200, {"details": {"tokens": [{}]}}), CHAT: (422, {})}, (False, False, False, False)),
        ({"/generate": (200, {"details": 3})}, (False, False, False, False)),
        ({"/generate": (422, {"details": {"prefill": [1]}})}, (False, False, False, False)),
        ({"/generate": (200, [])}, (False, False, False, False)),
    ],
)  # fmt: skip
def test_tgi_shows_what_it_can(replies: Replies, able: tuple[bool, ...]) -> None:
    """One token, greedily, with all details: without --enable-prefill-logprobs `prefill` is there, and empty."""
    found, sent = explore(TgiReader(), replies)
    assert tuple(found[k] for k in ("log_probs", "prompt_log_probs", "top_n", "chat_template")) == able
    details = {"max_new_tokens": 1, "details": True, "decoder_input_details": True, "top_n_tokens": 2}
    assert sent == {
        "/generate": {"inputs": "1", "parameters": details},
        CHAT: {"messages": ONE, "max_tokens": 1, "model": "tgi"},
    }


def test_a_live_server_describes_its_pair_and_abilities() -> None:
    """Abilities are what it reports as yes or no; anything else it says is unknown."""
    live = {"capabilities": {"log_probs": True, "top_n": False, "prompt_log_probs": "maybe"}}
    found = identify(LiveReader(), {"/info": (200, {"live": live})})
    assert (found.model, found.capabilities) == ("live", {"log_probs": True, "top_n": False})
    assert found.info == {"live": live}
    assert asyncio.run(LiveReader().explore(found, None)) == found.capabilities  # type: ignore[arg-type]
    assert identify(LiveReader(), {"/info": (200, {"live": {"capabilities": 3}})}).capabilities == {}


def test_a_live_server_of_another_pair_is_wrong() -> None:
    """The message says which endpoint is another one; `identity: false`, or no expected pair, believes any."""
    pair = PairSpec(EndpointSpec("org/Instruct"), EndpointSpec("org/Thinking"))
    told = {"instruct": {"name": "org/Instruct"}, "thinking": {"name": "org/Other"}}
    replies = {"/info": (200, {"live": told})}
    wanted = replace(BACKEND, pair=pair)
    with pytest.raises(WrongIdentityError, match=r"thinking endpoint is org/Other, expected org/Thinking"):
        identify(LiveReader(), replies, wanted)
    for believing in (BACKEND, replace(wanted, identity=False)):
        assert identify(LiveReader(), replies, believing).model == "live"
    told["thinking"]["name"] = "/models/Thinking"
    assert identify(LiveReader(), replies, wanted).model == "live"


@pytest.mark.parametrize("reply", [(404, None), (200, {}), (200, {"live": 3}), (500, {"live": {}}), (200, [])])
def test_what_describes_no_pair_is_no_live_server(reply: tuple[int, Any]) -> None:
    """The message asks whether this is `dami live`."""
    with pytest.raises(ProbeError, match="dami live"):
        identify(LiveReader(), {"/info": reply})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.sampled_from(["", "fam-l050", "id", "x"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["data", "id", "root", "model_id", "model_sha", "live", "choices", "logprobs",
                                       "content", "details", "tokens", "capabilities", "instruct"]), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(JSON, st.sampled_from([200, 404]), st.sampled_from([OpenAIReader(), TgiReader(), LiveReader()]))
def test_whatever_json_a_server_sends_is_an_identity_or_a_reason(body: Any, status: int, reader: Reader) -> None:
    """No reply makes a probe fail in another way, and exploring never fails at all."""

    class Always(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            return status, body

    pair = (
        PairSpec(EndpointSpec("org/Instruct"), EndpointSpec("org/Thinking")) if isinstance(reader, LiveReader) else None
    )
    try:
        assert identify(reader, Always(), replace(BACKEND, pair=pair)).model
    except (ProbeError, WrongIdentityError) as error:
        assert str(error)
    assert all(isinstance(value, bool) for value in explore(reader, Always())[0].values())
