"""The adapter's own part, without LiteLLM: reading requests, deciding, rewriting, classifying."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.waiting import until
from fakes.world import World, router_yml
from hypothesis import given, settings
from hypothesis import strategies as st

import litellm_dami
from dami_router.config.router_yml import load_config, parse_config
from dami_router.config.specs import RouterConfig
from dami_router.errors import MisuseError, RecipeError
from litellm_dami.classifying import DamiClassifier
from litellm_dami.deciding import Decider, router_file
from litellm_dami.reading import request_of
from litellm_dami.rewriting import Rewriter

EXAMPLE = Path(litellm_dami.__file__).parents[1] / "example"
ASK = [{"role": "user", "content": "2+2?"}]


def config(extra: str = "") -> RouterConfig:
    """Three variants, no servers."""
    lines = ["variants:", *(f"  - {{id: m-l{i:03}, lambda: {i / 100}}}" for i in (0, 50, 100)), extra]
    return parse_config("\n".join(lines), {}, needs_backends=False)


def rewritten(rewriter: Rewriter, call_type: str = "acompletion", **data: Any) -> dict[str, Any]:
    """Send one request through the hook."""
    request: dict[str, Any] = {"model": "dami", "messages": ASK, "litellm_call_id": "c1", **data}
    asyncio.run(rewriter.before(request, call_type))
    return request


def test_a_configuration_without_servers_decides_and_does_not_serve(tmp_path: Path) -> None:
    """Who only decides may leave `backends` out; for `dami serve` they stay required."""
    (tmp_path / "router.yml").write_text((EXAMPLE / "router.yml").read_text())
    assert Decider(tmp_path / "router.yml").config.backends == ()
    with pytest.raises(RecipeError, match="backends"):
        load_config(tmp_path / "router.yml")


def test_backends_that_are_given_are_read_strictly() -> None:
    """That they may be missing does not mean that they may be wrong."""
    with pytest.raises(RecipeError, match="did you mean `url`"):
        config("backends: [{variant: m-l000, urll: http://h:1, protocol: tgi}]")


def test_a_live_server_is_refused() -> None:
    """LiteLLM chooses among its own models, and a server of any λ is not one of them for each λ."""
    live = parse_config('variants: [{id: a, lambda: 0}]\nbackends: [{url: "http://h:1", protocol: live}]', {})
    with pytest.raises(MisuseError, match="live server") as refused:
        Decider(live)
    assert "`dami serve`" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("effort", "variant"), [("none", "m-l000"), ("medium", "m-l050"), ("high", "m-l100"), (None, "m-l050")]
)
def test_efforts_become_models(effort: str | None, variant: str) -> None:
    """The model becomes the variant of λ(q), and the decision is in the headers and in the spend log's metadata."""
    rewriter = Rewriter(Decider(config()))
    data = rewritten(rewriter, reasoning_effort=effort, metadata={"spend_logs_metadata": {"team": "a"}})
    assert data["model"] == variant
    shown = data["metadata"]["spend_logs_metadata"]
    assert (shown["team"], shown["dami"]["variant"]) == ("a", variant)
    headers = rewriter.headers(data)
    assert headers is not None
    assert (headers["x-dami-variant"], headers["x-dami-estimator"]) == (variant, "effort" if effort else "fixed")
    assert json.dumps(data["metadata"]).find("2+2") < 0


def test_a_fallback_s_variant_is_named() -> None:
    """Where LiteLLM says that another variant answered, the header names it; a stranger's name is nothing."""
    rewriter = Rewriter(Decider(config()))
    data = rewritten(rewriter, reasoning_effort="high")
    found = [rewriter.headers(data, model) for model in ("m-l050", "gpt", None)]
    assert [headers and headers["x-dami-variant"] for headers in found] == ["m-l050", "m-l100", "m-l100"]


@pytest.mark.parametrize("model", ["m-l000", "gpt", "damian", "dami:x", "dami:1.5", "dami:", None, ["dami"], ""])
def test_other_models_are_left_alone(model: object) -> None:
    """A request for anything but `dami` and `dami:λ` comes out as it went in."""
    rewriter = Rewriter(Decider(config()))
    data = rewritten(rewriter, model=model)
    assert data == {"model": model, "messages": ASK, "litellm_call_id": "c1"}
    assert rewriter.headers(data) is None


@pytest.mark.parametrize("call_type", ["aembedding", "amoderation", "aimage_generation", "call_mcp_tool"])
def test_other_calls_are_left_alone(call_type: str) -> None:
    """Only what a language model answers is rewritten."""
    assert rewritten(Rewriter(Decider(config())), call_type)["model"] == "dami"


def test_lambda_may_be_pinned_and_the_name_chosen() -> None:
    """`NAME:0.5` pins λ under whatever name the hook was given."""
    rewriter = Rewriter(Decider(config()), "smart")
    assert rewritten(rewriter, model="smart:1")["model"] == "m-l100"
    assert rewritten(rewriter, model="smart:0.1", reasoning_effort="high")["model"] == "m-l000"
    assert rewritten(rewriter, model="dami")["model"] == "dami"


def test_metadata_goes_where_litellm_keeps_its_own() -> None:
    """On routes whose `metadata` is the provider's, LiteLLM has `litellm_metadata`, and so has the decision."""
    data = rewritten(Rewriter(Decider(config())), "anthropic_messages", litellm_metadata={}, metadata={"user_id": "u"})
    assert data["metadata"] == {"user_id": "u"}
    assert data["litellm_metadata"]["spend_logs_metadata"]["dami"]["variant"] == "m-l050"


@pytest.mark.parametrize(
    "data",
    [
        {"messages": [*ASK, {"role": "assistant", "content": None, "tool_calls": [object()]}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "2+2?"}, {"image_url": {"url": "data:"}}]}
            ]
        },
        {"prompt": "2+2?"},
        {"prompt": ["2+2?"]},
        {"input": "2+2?"},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "2+2?"}]}]},
    ],
)
def test_every_form_of_a_question_is_read(data: dict[str, Any]) -> None:
    """Chat, completions and responses requests give the same text; objects of LiteLLM's are no obstacle."""
    request = request_of({**data, "litellm_logging_obj": object()}, "dami")
    assert request.text == "2+2?"
    assert b"data:" not in request.body


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
FIELDS = (
    "messages",
    "prompt",
    "input",
    "reasoning_effort",
    "reasoning",
    "user",
    "stream",
    "metadata",
    "litellm_call_id",
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_no_request_is_refused_by_the_hook(data: dict[str, Any]) -> None:
    """Whatever a client sends, the hook gives it a variant and leaves refusing to the server."""
    assert rewritten(Rewriter(Decider(config())), **data)["model"] in {"m-l000", "m-l050", "m-l100"}


class Failing:
    """An estimator whose error repeats the query."""

    name = "failing"

    async def estimate(self, query: Any) -> Any:
        raise ValueError(query.text)


def test_a_failing_estimator_is_passed_over_and_keeps_the_query_to_itself(caplog: pytest.LogCaptureFixture) -> None:
    """The chain goes on to its end, and no log repeats the query."""
    caplog.set_level(logging.DEBUG)
    made = config()
    failing = made.estimator.__class__((Failing(),), made.estimator.last)
    object.__setattr__(made, "estimator", failing)
    assert rewritten(Rewriter(Decider(made)))["model"] == "m-l050"
    assert "failing" in caplog.text
    assert "2+2" not in caplog.text


def test_a_router_that_breaks_leaves_the_constant(caplog: pytest.LogCaptureFixture) -> None:
    """An error that nobody foresaw costs the estimate, never the request."""
    decider = Decider(config("estimator: {fixed: 0.9}"))

    async def broken(request: object) -> object:
        raise RuntimeError("2+2?")

    decider.router.decide = broken  # type: ignore[method-assign, assignment]
    data = rewritten(Rewriter(decider), reasoning_effort="none")
    assert data["model"] == "m-l100"
    assert data["metadata"]["spend_logs_metadata"]["dami"]["lambda"] == 0.9
    assert "RuntimeError" in caplog.text
    assert "2+2" not in caplog.text


def test_the_budget_is_kept() -> None:
    """The policy's budget holds: over many dear requests the mean λ stays at what was allowed."""
    rewriter = Rewriter(Decider(config("policy: {budget: {mean_lambda: 0.25, window: 10}}")))
    found = [rewritten(rewriter, litellm_call_id=str(i), reasoning_effort="high")["model"] for i in range(20)]
    assert found.count("m-l050") == found.count("m-l000") == 10


def test_tokens_are_counted_once_for_the_variant_that_answered() -> None:
    """A budget of tokens learns what answers cost from LiteLLM's success events, each once."""
    decider = Decider(config("policy: {budget: {mean_tokens: 100, window: 10}}"))
    rewriter, budget = Rewriter(decider), decider.router.ordering.budget
    assert budget is not None
    rewritten(rewriter, reasoning_effort="high")
    for call, tokens in (("c1", 900), ("c1", 7), ("strange", 7)):
        rewriter.after(call, "m-l050", tokens)
    assert budget.expected["m-l050"] == budget.spent == 900


def test_a_conversation_only_goes_up() -> None:
    """With `sticky`, a later and easier turn stays at the λ of the earlier answer."""
    rewriter = Rewriter(Decider(config("policy: {sticky: true}")))
    rewritten(rewriter, reasoning_effort="high")
    rewriter.after("c1", "m-l100", 5)
    again = [*ASK, {"role": "assistant", "content": "4"}, {"role": "user", "content": "sure?"}]
    assert rewritten(rewriter, messages=again, reasoning_effort="none")["model"] == "m-l100"


def test_what_is_remembered_is_bounded_and_holds_no_text() -> None:
    """The decisions of the last calls are kept without their queries, the oldest forgotten."""
    rewriter = Rewriter(Decider(config()))
    for i in range(4100):
        asyncio.run(rewriter.before({"model": "dami", "messages": ASK, "litellm_call_id": str(i)}, "acompletion"))
    assert rewriter.headers({"litellm_call_id": "0"}) is None
    assert rewriter.headers({"litellm_call_id": "4099"}) is not None
    assert len(rewriter._decided) == 4096
    assert "2+2" not in repr(rewriter._decided)


def test_servers_that_are_given_are_probed_and_their_connections_closed(world: World) -> None:
    """With `backends`, a variant whose server is down is not chosen; the router closes with the loop."""
    low, high = world.tgi("m-l000"), world.tgi("m-l100")
    made = parse_config(router_yml(("m-l000", low), ("m-l100", high)), {})
    world.loop.run(high.stop())
    decider = Decider(made)
    assert rewritten(Rewriter(decider), reasoning_effort="high")["model"] == "m-l000"
    until(lambda: not low.connections)
    world.loop.run(high.start())
    assert rewritten(Rewriter(decider), reasoning_effort="high")["model"] == "m-l100"


def test_no_usable_server_leaves_the_constant(world: World) -> None:
    """Where every server turns out to be somebody else's, LiteLLM still gets a model to ask."""
    stranger = world.tgi("other")
    made = parse_config(router_yml(("m-l000", stranger)), {})
    assert rewritten(Rewriter(Decider(made)))["model"] == "m-l000"


def test_the_classifier_names_the_variant() -> None:
    """The tier is the variant of λ(q); a request without text is declined."""
    classifier = DamiClassifier(config("estimator: {fixed: 0.9}"))
    assert asyncio.run(classifier.classify(SimpleNamespace(structured_messages=ASK))) == "m-l100"
    assert asyncio.run(classifier.classify(SimpleNamespace(structured_messages=[]))) is None


def test_the_classifier_keeps_the_budget_though_litellm_copies_it() -> None:
    """LiteLLM deep-copies its configuration; the copy is the classifier itself, with its budget."""
    classifier = DamiClassifier(config("estimator: {fixed: 1}\npolicy: {budget: {mean_lambda: 0.25}}"))
    copied = copy.deepcopy({"plugin": classifier})["plugin"]
    assert copied is classifier
    found = [asyncio.run(copied.classify(SimpleNamespace(structured_messages=ASK))) for _ in range(10)]
    assert sorted(map(str, found)) == ["m-l000"] * 5 + ["m-l050"] * 5


def test_the_instances_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What config.yaml names is made once, from the router.yml of DAMI_ROUTER; without it, one sentence says so."""
    monkeypatch.delenv("DAMI_ROUTER", raising=False)
    with pytest.raises(MisuseError, match="DAMI_ROUTER is not set"):
        router_file()
    monkeypatch.setenv("DAMI_ROUTER", str(EXAMPLE / "router.yml"))
    try:
        assert isinstance(litellm_dami.classifier, DamiClassifier)
        assert litellm_dami.classifier is litellm_dami.classifier
    finally:
        vars(litellm_dami).pop("classifier", None)
    with pytest.raises(AttributeError):
        _ = litellm_dami.nothing


def test_importing_the_adapter_is_light() -> None:
    """Deciding and classifying need neither LiteLLM nor torch nor huggingface_hub."""
    code = "import sys, litellm_dami.classifying, litellm_dami.rewriting; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"litellm", "torch", "huggingface_hub", "openai"}
