"""The lab family behind the proxy on a real vLLM, on the CPU: opt-in, `make test-vllm`."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fakes.processes import free_port, healthy
from fakes.waiting import until
from fakes.world import World

from dami_merge.lab import copy_pair
from dami_merge.lab.widening import widen
from dami_router.cli import main
from dami_router.rollouts.records import read_rollouts

if TYPE_CHECKING:
    from dami_merge.live import Engine

needs_vllm = pytest.mark.skipif(
    "DAMI_VLLM_PYTHON" not in os.environ, reason="DAMI_VLLM_PYTHON names no Python with vLLM; `make test-vllm` does"
)
VLLM_DAMI = Path(os.environ.get("DAMI_VLLM_PYTHON", "python")).parent / "dami"
needs_plugin = pytest.mark.skipif(not VLLM_DAMI.exists(), reason="`dami` and vllm-dami are not installed beside vLLM")
BIN = Path(sys.executable).parent
RECIPE = Path(__file__).parents[4] / "merge_configs" / "lab-family.yml"
NAMES = ("lab-dami-l000", "lab-dami-l100")
SMALL = ("--enforce-eager", "--max-model-len", "256")
CHAIN = [{"role": "user", "content": "3+7-2>5="}]


def vllm(model: Path, log: Path) -> AbstractContextManager[tuple[str, subprocess.Popen[bytes]]]:
    """Start a server of one folder on the CPU, as router_configs/vllm.yml does on a GPU; yields where it will be."""
    command = [os.environ["DAMI_VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    return running([*command, "--dtype", "float32", *SMALL, "--max-num-seqs", "8"], log)


def vllm_pair(pair: Path, log: Path) -> AbstractContextManager[tuple[str, subprocess.Popen[bytes]]]:
    """Start one server of both endpoints, with λ in each request and prefix caching on."""
    command = [str(VLLM_DAMI), "live", str(pair / "instruct"), str(pair / "thinking"), "--engine", "vllm"]
    return running([*command, "--dtype", "float32", "--max-rows", "8"], log, "--", *SMALL, "--enable-prefix-caching")


@contextmanager
def running(command: list[str], log: Path, *rest: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a server at a free port; yields where it will be."""
    port = free_port()
    command = [*command, "--port", str(port), *rest]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (
        log.open("wb") as out,
        subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()
            process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server is healthy; it takes minutes on a slow machine."""
    until(lambda: process.poll() is not None or healthy(url), limit=600, pause=0.5)
    assert process.poll() is None, log.read_text(errors="replace")[-3000:]


def warm_up(url: str, model: str) -> None:
    """Have one token generated: vLLM's first one may take longer than a probe waits."""
    body = json.dumps({"model": model, "prompt": "1", "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as reply:
        assert reply.status == 200


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab family's two ends, built, with heads that vLLM has on a CPU."""
    place = tmp_path_factory.mktemp("vllm")
    subprocess.run([BIN / "dami", "lab", place / "lab"], check=True, capture_output=True)
    (place / "family.yml").write_text(RECIPE.read_text().replace("./lab", str(place / "lab")))
    build = [BIN / "dami", "build", place / "family.yml", place / "out", "--only", "0", "--only", "1"]
    subprocess.run(build, check=True, capture_output=True)
    (place / "wide").mkdir()
    for variant in NAMES:
        widen(place / "out" / variant, place / "wide" / variant, 32)
    shutil.copy(place / "out" / "dami_family.json", place / "wide")
    return place / "wide"


@pytest.fixture(scope="module")
def urls(family: Path) -> Iterator[tuple[str, str]]:
    """A vLLM at λ = 0, and one at λ = 1."""
    with ExitStack() as stack:
        logs = [family.parent / f"{name}.log" for name in NAMES]
        started = [stack.enter_context(vllm(family / name, log)) for name, log in zip(NAMES, logs, strict=True)]
        for (url, process), log in zip(started, logs, strict=True):
            wait_for(url, process, log)
            warm_up(url, str(family / log.stem))
        yield started[0][0], started[1][0]


def config(family: Path, urls: tuple[str, str], extra: str = "") -> str:
    """Return a router.yml for the two servers."""
    backends = [f'  - {{variant: {x}, url: "{url}", protocol: openai}}' for x, url in zip(NAMES, urls, strict=True)]
    return "\n".join([f"family: {family}", "backends:", *backends, extra])


def dami(*arguments: object) -> tuple[int, dict[str, object]]:
    """Run a command in this process under --json."""
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments), "--json"])
    return int(stopped.value.code or 0), json.loads(out.getvalue())


def test_wider_heads_are_the_same_model(family: Path) -> None:
    """What vLLM is given computes what the built variant computes, up to fp32's rounding."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[1, 5, 9, 13, 7, 3, 12, 6]])
    for name in NAMES:
        places = family.parent / "out" / name, family / name
        with torch.inference_mode():
            one, other = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32)(ids).logits for p in places)
        assert (one - other).abs().max() < 1e-3
        assert one.abs().max() > 1


@pytest.mark.vllm
@needs_vllm
def test_vllm_is_recognised_and_its_abilities_found(family: Path, urls: tuple[str, str], tmp_path: Path) -> None:
    """Identity by the folder that it serves; log-probabilities of answers and prompts; a swapped pair is refused."""
    path = tmp_path / "router.yml"
    path.write_text(config(family, urls))
    code, found = dami("check", path, "--probe")
    servers = found["servers"]
    assert isinstance(servers, list)
    assert (code, [server["health"] for server in servers]) == (0, ["alive"] * 2)
    able = servers[0]["capabilities"]
    can = {"log_probs": True, "prompt_log_probs": True, "top_n": True, "chat_template": True}
    assert able == can | {"thinking_budget": False}  # it has no reasoning parser
    path.write_text(config(family, urls[::-1]))
    assert dami("check", path, "--probe")[0] == 1


@pytest.mark.vllm
@needs_vllm
def test_efforts_and_confidence_route_on_vllm(world: World, family: Path, urls: tuple[str, str]) -> None:
    """Low effort answers at once, high effort thinks; without a hint, log-probabilities decide, in both forms."""
    chain = "estimator: {chain: [effort, {confidence: {form: %s}}], fixed: 0.5, timeout: 10}"
    for form in ("instruct", "discrepancy"):
        client = world.proxy(config(family, urls, chain % form))

        def ask(effort: str | None, client: object = client) -> tuple[int, str, int]:
            body = {"messages": CHAIN, "max_tokens": 160, "temperature": 0}
            body |= {"reasoning_effort": effort} if effort else {}
            answer = client.post("/v1/chat/completions", body)  # type: ignore[attr-defined]
            return answer.status, answer.headers["x-dami-estimator"], answer.json["usage"]["completion_tokens"]

        (status, _, short), (_, _, long) = ask("none"), ask("high")
        assert (status, short < 5 < long) == (200, True)
        assert ask(None)[:2] == (200, "confidence")


@pytest.mark.vllm
@needs_vllm
def test_rollouts_on_vllm(family: Path, urls: tuple[str, str], tmp_path: Path) -> None:
    """Every question is answered at both ends and graded, with vLLM's count of tokens."""
    (tmp_path / "router.yml").write_text(config(family, urls))
    rows = [{"question": "3+4=", "answer": 7}, {"question": "9-4=", "answer": 5}, {"question": "3>5=", "answer": 5}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "r.jsonl"
    code, _ = dami(
        "rollout", tmp_path / "router.yml", "--dataset", tmp_path / "q.jsonl", "--out", out, "--max-tokens", 160
    )
    found = list(read_rollouts(out))
    assert (code, len(found)) == (0, 6)
    instruct, thinking = ([r for r in found if r.lambda_ == x] for x in (0.0, 1.0))
    assert sum(r.tokens for r in thinking) > 2 * sum(r.tokens for r in instruct)
    assert any(r.correct for r in instruct)


CHAINS = ("3+7-2>5=", "1+1=", "9-3+2-7+5-1=", "4<2<9<1=")
LAMBDAS = (0.0, 0.35, 0.6, 1.0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab pair, with heads that vLLM has on a CPU."""
    folder = tmp_path_factory.mktemp("pair") / "lab"
    copy_pair(folder, head_size=32)
    return folder


@pytest.fixture(scope="module")
def live_url(pair: Path) -> Iterator[str]:
    """One vLLM that holds both endpoints."""
    log = pair.parent / "vllm.log"
    with vllm_pair(pair, log) as (url, process):
        wait_for(url, process, log)
        yield url


@pytest.fixture(scope="module")
def engine(pair: Path) -> Engine:
    """The same pair in `dami live`'s own engine, which is compared with Transformers elsewhere."""
    from dami_merge.live import Engine

    return Engine.load(str(pair / "instruct"), str(pair / "thinking"), mode="mixed")


def in_front(pair: Path, url: str, extra: str = "estimator: {chain: [], fixed: 0.5}") -> str:
    """Return a router.yml for the one server."""
    ends = ", ".join(f'{side}: "{pair / side}"' for side in ("instruct", "thinking"))
    return f'backends: [{{url: "{url}", protocol: live, {ends}}}]\n{extra}'


@pytest.mark.vllm
@needs_vllm
@needs_plugin
def test_a_vllm_of_both_endpoints_is_recognised(pair: Path, live_url: str, tmp_path: Path) -> None:
    """Its engine, its abilities and both checkpoints, by /info; another pair is refused."""
    path = tmp_path / "router.yml"
    path.write_text(in_front(pair, live_url))
    code, found = dami("check", path, "--probe")
    servers = found["servers"]
    assert isinstance(servers, list)
    assert (code, servers[0]["health"], servers[0]["engine"]) == (0, "alive", "vllm")
    able = servers[0]["capabilities"]
    assert {name for name, can in able.items() if can} == {"log_probs", "prompt_log_probs", "top_n", "chat_template"}
    path.write_text(path.read_text().replace("thinking: ", "thinking: /other"))
    assert dami("check", path, "--probe")[0] == 1


@pytest.mark.vllm
@needs_vllm
@needs_plugin
def test_each_lambda_has_its_own_answers(world: World, pair: Path, live_url: str, engine: Engine) -> None:
    """Four λ and four prompts at once, twice, with prefix caching on, with a client's salt too: each gets its own."""
    client = world.proxy(in_front(pair, live_url))

    def ask(asked: tuple[str, float, str | None]) -> str:
        chain, lambda_, salt = asked
        body = {"model": f"dami:{lambda_:g}", "messages": [{"role": "user", "content": chain}], "temperature": 0}
        answer = client.post("/v1/chat/completions", {**body, "max_tokens": 60, "cache_salt": salt})
        assert answer.status == 200, answer.body
        return str(answer.json["choices"][0]["message"]["content"])

    asked = [(chain, lambda_, salt) for chain in CHAINS for salt in (None, "mine") for lambda_ in LAMBDAS]
    assert engine.texts is not None
    prompts = [engine.texts.encode_chat([{"role": "user", "content": c}], x) for c, x, _ in asked]
    expected = [answer.text for answer in engine.generate(prompts, [x for _, x, _ in asked], max_new_tokens=60)]
    assert len(set(expected)) > len(CHAINS)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, asked)) == expected
        assert list(threads.map(ask, asked)) == expected


@pytest.mark.vllm
@needs_vllm
@needs_plugin
def test_discrepancy_comes_from_both_ends_of_one_vllm(world: World, pair: Path, live_url: str, engine: Engine) -> None:
    """D is mean(log p_I − log p_T), from a probe at λ = 0 and a prefill at λ = 1 of the one server."""
    from dami_merge.live import Generation

    chain = "estimator: {chain: [{confidence: {form: discrepancy, timeout: 60}}], fixed: 0.25}"
    client = world.proxy(in_front(pair, live_url, chain))
    found = client.post("/v1/route", {"messages": CHAIN}).json
    assert found["estimator"] == "confidence"
    assert engine.texts is not None
    prompt = engine.texts.encode_chat(CHAIN, 0.0)
    asked = [Generation(prompt, 0.0, max_new_tokens=16, log_probs=True)]
    (probe,) = engine.complete(asked)
    answer = engine.texts.encode(probe.text)
    (scored,) = engine.complete([Generation([*prompt, *answer], 1.0, max_new_tokens=1, prompt_log_probs=0)])
    assert scored.prompt_log_probs is not None
    others = [token.log_prob or 0.0 for token in scored.prompt_log_probs[len(prompt) :]]
    expected = sum(p - q for p, q in zip(probe.log_probs, others, strict=False)) / len(others)
    assert found["evidence"]["discrepancy"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.vllm
@needs_vllm
@needs_plugin
def test_vllm_s_further_routes_have_lambda(world: World, pair: Path, live_url: str) -> None:
    """Anthropic's Messages at two λ: one answers at once, the other thinks."""
    client = world.proxy(in_front(pair, live_url))
    lengths = []
    for lambda_ in (0, 1):
        body = {"model": f"dami:{lambda_}", "messages": CHAIN, "max_tokens": 160, "temperature": 0}
        answer = client.post("/v1/messages", body)
        assert (answer.status, answer.variant) == (200, f"dami:{lambda_}")
        lengths.append(answer.json["usage"]["output_tokens"])
    assert lengths[0] < 5 < lengths[1]
