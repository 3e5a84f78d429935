"""The real LiteLLM with the adapter in it: its proxy in a process of its own, the openai client in front."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from fakes.loop import Loop
from fakes.processes import free_port
from fakes.upstream import Call, Upstream, chat, plain, send
from fakes.waiting import until
from fakes.world import World

import litellm_dami

pytestmark = [
    pytest.mark.litellm,
    pytest.mark.skipif(
        "DAMI_LITELLM_PYTHON" not in os.environ,
        reason="DAMI_LITELLM_PYTHON names no Python with litellm[proxy]; `make test-litellm` does",
    ),
]
EXAMPLE = Path(litellm_dami.__file__).parents[1] / "example"
SECRET = "ZEBRAFISH"
# An estimator of another distribution: it fails, hangs or answers as it is told to.
STRANGER = f'''
import asyncio
from dami_router.estimators.estimator import Estimate

class Moody:
    name = "moody"

    async def estimate(self, query):
        if "fail" in query.text:
            raise ValueError("{SECRET} " + query.text)
        if "hang" in query.text:
            await asyncio.sleep(3600)
        return Estimate(1.0 if "prove" in query.text else 0.0, "moody", {{"words": len(query.text.split())}})
'''
# A logger of the operator's own: writes what LiteLLM's integrations get to see.
RECORDER = """
import json
from litellm.integrations.custom_logger import CustomLogger

class Recorder(CustomLogger):
    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        seen = kwargs["standard_logging_object"]
        row = {"group": seen["model_group"], "metadata": seen["metadata"].get("spend_logs_metadata")}
        with open("seen.jsonl", "a") as file:
            file.write(json.dumps(row) + "\\n")

recorder = Recorder()
"""


@dataclass
class LiteLLM:
    """A running proxy of LiteLLM's, its upstreams by variant, and its folder."""

    client: openai.OpenAI
    servers: dict[str, Upstream]
    folder: Path
    process: subprocess.Popen[bytes]

    def ask(self, text: str = "2+2?", **fields: Any) -> tuple[str, dict[str, str]]:
        """Ask for a chat completion with a secret in it; return which server was asked, and the reply's headers."""
        self.forget()
        body = {"model": "dami", "messages": [{"role": "user", "content": f"{SECRET} {text}"}], **fields}
        reply = self.client.chat.completions.with_raw_response.create(**body)
        return self.asked(), dict(reply.headers)

    def asked(self) -> str:
        """Return the one variant whose server was asked since `forget`."""
        (found,) = [name for name, server in self.servers.items() if server.calls]
        return found

    def forget(self) -> None:
        """Start counting calls afresh."""
        for server in self.servers.values():
            server.calls.clear()

    def log(self) -> str:
        """Return everything that the process wrote."""
        return (self.folder / "log").read_text(errors="replace")


async def scored(call: Call, writer: asyncio.StreamWriter) -> None:
    """Answer as a server does that gives log-probabilities to whoever asks for them."""
    if not call.json.get("logprobs"):
        await plain()(call, writer)
        return
    answer = chat()
    answer["choices"][0]["logprobs"] = {"content": [{"token": "4", "logprob": -0.1, "top_logprobs": []}]}
    await send(writer, 200, answer)


@contextmanager
def litellm(world: World, folder: Path, config: str, router: str) -> Iterator[LiteLLM]:
    """Run LiteLLM's proxy with an example's configuration over three test servers."""
    servers: dict[str, Upstream] = {
        "m-l000": world.upstream("m-l000", scored), "m-l050": world.tgi("m-l050"), "m-l100": world.tgi("m-l100")
    }  # fmt: skip
    text = (EXAMPLE / config).read_text().replace("callbacks: [", "callbacks: [recorder.recorder, ")
    # One test's failing server must not be avoided in the next.
    text = text.replace("router_settings:", "router_settings:\n  disable_cooldowns: true")
    for i, server in enumerate(servers.values(), 1):
        text = text.replace(f"http://127.0.0.1:800{i}", server.url)
        router = router.replace(f"http://127.0.0.1:800{i}", server.url)
    files = {"config.yaml": text, "router.yml": router, "recorder.py": RECORDER, "lib/moody.py": STRANGER}
    files["lib/moody-1.dist-info/METADATA"] = "Metadata-Version: 2.1\nName: moody\nVersion: 1\n"
    files["lib/moody-1.dist-info/entry_points.txt"] = "[dami.estimators]\nmoody = moody:Moody\n"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    port = free_port()
    command = [os.environ["DAMI_LITELLM_PYTHON"], "-c", "from litellm import run_server; run_server()"]
    command += ["--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=log, stderr=log)
    try:
        wait(process, port, folder / "log")
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="sk-1", max_retries=0) as client:
            yield LiteLLM(client, servers, folder, process)
    finally:
        process.terminate()
        process.wait(30)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a LiteLLM that asks nobody outside."""
    own = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": "sk-1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, "NO_PROXY": "*", "PYTHONPATH": str(folder / "lib")}


def wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until LiteLLM answers; its import alone takes many seconds."""

    def alive() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5):
                return True
        except OSError:
            return False

    until(lambda: process.poll() is not None or alive(), limit=180, pause=0.2)
    assert process.poll() is None, log.read_text(errors="replace")[-4000:]


ROUTER = (EXAMPLE / "router.yml").read_text()
WITH_SERVERS = (
    ROUTER.replace("[effort] ", "[effort, {moody: {}}, confidence] ").replace("fixed: 0.5", "timeout: 2\n  fixed: 0.5")
    + """
backends:
  - {variant: m-l000, url: "http://127.0.0.1:8001", protocol: openai}
  - {variant: m-l050, url: "http://127.0.0.1:8002", protocol: tgi}
  - {variant: m-l100, url: "http://127.0.0.1:8003", protocol: tgi}
probe: {interval: 3600}
"""
)


@pytest.fixture(scope="module")
def hooked(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteLLM]:
    """LiteLLM with the hook, a stranger's estimator in the chain, and servers for estimators to ask."""
    world = World(loop)
    with litellm(world, tmp_path_factory.mktemp("hook"), "hook.yaml", WITH_SERVERS) as made:
        yield made
    world.close()


@pytest.fixture(scope="module")
def classified(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteLLM]:
    """LiteLLM's complexity router with our classifier, and no servers for estimators."""
    world = World(loop)
    router = ROUTER.replace("[effort] ", "[{moody: {}}] ")
    with litellm(world, tmp_path_factory.mktemp("classifier"), "classifier.yaml", router) as made:
        yield made
    world.close()


@pytest.mark.parametrize(("effort", "variant"), [("none", "m-l000"), ("medium", "m-l050"), ("high", "m-l100")])
def test_efforts_reach_different_models(hooked: LiteLLM, effort: str, variant: str) -> None:
    """The request's own hint decides, and the headers say what was decided."""
    asked, headers = hooked.ask(reasoning_effort=effort)
    assert asked == headers["x-dami-variant"] == headers["x-litellm-model-group"] == variant
    assert headers["x-dami-estimator"] == "effort"
    assert float(headers["x-dami-route-ms"]) >= 0


@pytest.mark.parametrize(("text", "variant"), [("hi", "m-l000"), ("prove it", "m-l100")])
def test_queries_reach_different_models(hooked: LiteLLM, text: str, variant: str) -> None:
    """An estimator that looks at the query sends different queries to different models."""
    asked, headers = hooked.ask(text)
    assert (asked, headers["x-dami-estimator"]) == (variant, "moody")


@pytest.mark.parametrize("text", ["fail", "hang"])
def test_a_failing_estimator_fails_no_request(hooked: LiteLLM, text: str) -> None:
    """Where one raises or hangs, the next decides, in time: here by asking the Instruct variant's server."""
    begun = time.monotonic()
    asked, headers = hooked.ask(text)
    assert (asked, headers["x-dami-estimator"]) == ("m-l000", "confidence")
    assert [call.json.get("logprobs") for call in hooked.servers["m-l000"].calls] == [True, None]
    assert time.monotonic() - begun < 15


def test_lambda_can_be_pinned(hooked: LiteLLM) -> None:
    """`dami:0.9` is that λ whatever the query."""
    asked, headers = hooked.ask(model="dami:0.9", reasoning_effort="none")
    assert (asked, headers["x-dami-lambda"], headers["x-dami-estimator"]) == ("m-l100", "0.9", "pinned")


def test_other_models_are_untouched(hooked: LiteLLM) -> None:
    """A model by its own name is LiteLLM's business alone, and so is one that nobody knows."""
    asked, headers = hooked.ask(model="m-l000", reasoning_effort="high")
    assert asked == "m-l000"
    assert not [name for name in headers if name.startswith("x-dami")]
    for unknown in ("nobody", "dami:fast", "damian"):
        with pytest.raises(openai.BadRequestError, match="Invalid model name"):
            hooked.ask(model=unknown)


def test_streams_come_through(hooked: LiteLLM) -> None:
    """A streamed reply has the decision in its headers and arrives in pieces."""
    hooked.forget()
    ask: Any = {"model": "dami", "messages": [{"role": "user", "content": f"{SECRET} hi"}], "reasoning_effort": "high"}
    reply = hooked.client.chat.completions.with_raw_response.create(stream=True, **ask)
    pieces = [event.choices[0].delta.content for event in reply.parse() if event.choices]
    assert [piece for piece in pieces if piece] == ["It", " is", " 4"]
    assert hooked.asked() == reply.headers["x-dami-variant"] == "m-l100"


def test_completions_and_responses_are_decided_too(hooked: LiteLLM) -> None:
    """OpenAI's other routes name the model in the same way; Anthropic's, too."""
    hooked.forget()
    reply = hooked.client.completions.with_raw_response.create(model="dami", prompt=f"{SECRET} prove it")
    assert (hooked.asked(), reply.headers["x-dami-variant"]) == ("m-l100", "m-l100")
    hooked.forget()
    with pytest.raises(openai.NotFoundError):  # TGI has no such route; what matters is who was asked
        hooked.client.responses.create(
            model="dami",
            input=f"{SECRET} hi",
            extra_body={"disable_fallbacks": True},
            reasoning={"effort": "high"},
        )
    assert hooked.asked() == "m-l100"
    hooked.forget()
    message = {"role": "user", "content": [{"type": "text", "text": f"{SECRET} prove it"}]}
    hooked.client.post("/messages", cast_to=object, body={"model": "dami", "max_tokens": 9, "messages": [message]})
    assert hooked.asked() == "m-l100"


def test_integrations_see_the_decision(hooked: LiteLLM) -> None:
    """The decision is in the metadata that LiteLLM gives to spend logs and logging integrations, without the query."""
    hooked.ask("prove it", extra_body={"metadata": {"spend_logs_metadata": {"team": "a"}}})
    row = until(lambda: [r for r in seen(hooked.folder) if (r["metadata"] or {}).get("team") == "a"])[0]
    assert row["group"] == "m-l100"
    found = row["metadata"]["dami"]
    assert (found["lambda"], found["variant"], found["estimator"]) == (1.0, "m-l100", "moody")
    assert found["evidence"] == {"words": 3}


def seen(folder: Path) -> list[dict[str, Any]]:
    """Return what the recorder wrote."""
    file = folder / "seen.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_the_models_are_listed(hooked: LiteLLM) -> None:
    """`dami` is among the models that a client can choose from."""
    assert {"dami", "m-l000", "m-l050", "m-l100"} == {model.id for model in hooked.client.models.list().data}


def test_a_dead_server_is_litellm_s_fallback_s_business(hooked: LiteLLM, loop: Loop) -> None:
    """LiteLLM falls back to the nearest λ as configured, and the header names the variant that answered."""
    dead = hooked.servers["m-l100"]
    loop.run(dead.stop())
    try:
        asked, headers = hooked.ask(reasoning_effort="high")
    finally:
        loop.run(dead.start())
    assert asked == headers["x-dami-variant"] == "m-l050"
    assert headers["x-dami-lambda"] == "1"
    assert headers["x-litellm-attempted-fallbacks"] == "1"


@pytest.mark.parametrize(("text", "tier"), [("hi", "m-l000"), ("prove it", "m-l100"), ("fail", "m-l050")])
def test_the_classifier_sets_the_tier(classified: LiteLLM, text: str, tier: str) -> None:
    """LiteLLM's complexity router takes the variant of λ(q) as the tier, also where an estimator fails."""
    asked, headers = classified.ask(text)
    assert asked == headers["x-litellm-complexity-router-tier"] == tier
    assert headers["x-litellm-complexity-router-cause"] == "classifier_plugin"


def test_the_classifier_works_for_streams(classified: LiteLLM) -> None:
    """A streamed request is classified as any other."""
    asked, headers = classified.ask("prove it", stream=True)
    assert (asked, headers["x-litellm-complexity-router-tier"]) == ("m-l100", "m-l100")


@pytest.mark.parametrize("name", ["hooked", "classified"])
def test_nothing_of_a_prompt_is_logged_and_all_is_closed(name: str, request: pytest.FixtureRequest) -> None:
    """After everything above: no query in LiteLLM's log, though estimators failed over it, and a clean end."""
    proxy: LiteLLM = request.getfixturevalue(name)
    proxy.ask("fail")
    proxy.process.terminate()
    assert proxy.process.wait(30) in (0, -15)
    log = proxy.log()
    assert "estimator moody failed: ValueError" in log
    assert SECRET not in log
    assert "Unclosed" not in log
    assert "was destroyed but it is pending" not in log


def test_a_wrong_configuration_stops_litellm_at_once(world: World, tmp_path: Path) -> None:
    """LiteLLM does not start with a wrong router.yml, and its log says what is wrong in which line."""
    with pytest.raises(AssertionError, match=r"router\.yml:1: variants: expected at least one"):
        litellm(world, tmp_path, "hook.yaml", "variants: []").__enter__()
