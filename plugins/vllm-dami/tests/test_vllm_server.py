"""`dami live --engine vllm` as a user runs it, on the lab pair: opt-in, `make test-vllm`."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.processes import free_port, healthy
from fakes.waiting import until
from support.live import variant
from support.pairs import Pair

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        "DAMI_VLLM_PYTHON" not in os.environ, reason="DAMI_VLLM_PYTHON names no Python with vLLM; `make test-vllm` does"
    ),
]
CHAIN = "3+7-2>5="
LAMBDAS = (0.0, 0.37, 0.8, 1.0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The lab pair with heads that vLLM has on a CPU."""
    folder = tmp_path_factory.mktemp("lab") / "lab"
    command = [Path(sys.executable).parent / "dami", "lab", folder, "--head-size", "32"]
    subprocess.run(command, check=True, capture_output=True)
    return Pair(folder / "instruct", folder / "thinking")


@contextmanager
def serving(pair: Pair, log: Path, *options: str, vllm: tuple[str, ...] = ()) -> Iterator[str]:
    """Start the server by the command line of the environment that has vLLM; yields its address."""
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DAMI_KEY": "secret"}
    command = [
        Path(os.environ["DAMI_VLLM_PYTHON"]).parent / "dami", "live", *map(str, pair), "--engine", "vllm",
        "--port", str(port), "--dtype", "float32", "--max-rows", "8", "--name", "lab", "--api-key-env", "DAMI_KEY",
        *options, "--", "--enforce-eager", *vllm,
    ]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as out, subprocess.Popen(command, env=kept | settings, stdout=out, stderr=out) as process:
        try:
            until(lambda: process.poll() is not None or healthy(address), limit=600, pause=0.5)
            assert process.poll() is None, log.read_text()[-3000:]
            yield address
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def address(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with λ per request; small blocks, so that short prompts are cached too."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serving(pair, log, vllm=("--block-size", "32", "--enable-prompt-tokens-details")) as found:
        yield found
    assert "3+7" not in log.read_text()


@pytest.fixture
def client(address: str) -> Any:
    """An unchanged openai client."""
    from openai import OpenAI

    return OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)


def call(address: str, path: str, fields: Any = None, key: str = "secret") -> tuple[int, Any]:
    """Send one request without a client's help."""
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    body = None if fields is None else json.dumps(fields).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}{path}", body, headers), timeout=300) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


class Answers:
    """What Transformers answers on merged weights."""

    def __init__(self, pair: Pair) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(pair.instruct)
        self.model = lru_cache(None)(lambda lambda_: variant(pair, lambda_, dtype=torch.float32))

    def chat(self, lambda_: float, text: str = CHAIN, count: int = 160) -> str:
        messages = [{"role": "user", "content": text}]
        ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return self.text(lambda_, list(ids), count)

    def text(self, lambda_: float, ids: list[int], count: int) -> str:
        made = self.model(lambda_).generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=count,
            do_sample=False,
        )  # fmt: skip
        return str(self.tokenizer.decode(made[0][len(ids) :], skip_special_tokens=True))


@pytest.fixture(scope="module")
def answers(pair: Pair) -> Answers:
    """The references of this file."""
    return Answers(pair)


def ask(client: Any, lambda_: object, **more: Any) -> Any:
    return client.chat.completions.create(
        model="lab", messages=[{"role": "user", "content": CHAIN}], max_tokens=160, temperature=0,
        extra_body={"vllm_xargs": {"lambda": lambda_}}, **more,
    )  # fmt: skip


def test_lambdas_of_their_own_in_one_batch(client: Any, answers: Answers) -> None:
    """An unchanged openai client gets at each λ what Transformers answers on the merged weights."""
    with concurrent.futures.ThreadPoolExecutor(len(LAMBDAS)) as pool:
        got = [reply.choices[0].message.content for reply in pool.map(lambda x: ask(client, x), LAMBDAS)]
    assert got == [answers.chat(lambda_) for lambda_ in LAMBDAS]
    assert len(set(got)) > 1


def test_streams(client: Any, answers: Answers) -> None:
    """The pieces of a stream are the whole answer; a client that leaves early does not disturb the next."""
    with ask(client, 1.0, stream=True) as left:
        next(iter(left))
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, 0.8, stream=True) if chunk.choices]
    assert "".join(pieces) == answers.chat(0.8)


def test_every_route(address: str, answers: Answers) -> None:
    """Completions, Responses and Messages take λ, and agree with Transformers."""
    xargs = {"vllm_xargs": {"lambda": 0.8}, "model": "lab", "temperature": 0}
    wanted = answers.chat(0.8)
    _, found = call(address, "/v1/responses", {**xargs, "input": CHAIN, "max_output_tokens": 160})
    assert found["output"][-1]["content"][0]["text"] == wanted
    messages = [{"role": "user", "content": CHAIN}]
    _, found = call(address, "/v1/messages", {**xargs, "messages": messages, "max_tokens": 160})
    assert found["content"][0]["text"] == wanted
    ids = answers.tokenizer(CHAIN)["input_ids"]
    wanted = answers.text(0.8, ids, 6)
    _, found = call(address, "/v1/completions", {**xargs, "prompt": ids, "max_tokens": 6})
    assert found["choices"][0]["text"] == wanted


def test_structured_outputs(client: Any) -> None:
    """A grammar holds at every λ."""
    for lambda_ in LAMBDAS:
        made = client.completions.create(
            model="lab", prompt=CHAIN, max_tokens=4, temperature=0,
            extra_body={"vllm_xargs": {"lambda": lambda_}, "structured_outputs": {"regex": "[1-3]{3}"}},
        )  # fmt: skip
        assert re.fullmatch("[1-3]{3}", made.choices[0].text)


@pytest.mark.parametrize("lambda_", [1.5, -0.01, "0.5", "x", True, [0.5]])
def test_a_bad_lambda_is_a_400_in_our_words(address: str, lambda_: object) -> None:
    """Out of range, text, a truth value or a list."""
    fields = {"model": "lab", "prompt": "1+1=", "vllm_xargs": {"lambda": lambda_}}
    status, reply = call(address, "/v1/completions", fields)
    assert (status, "`lambda` must be" in reply["error"]["message"]) == (400, True)


def test_prefix_caching_over_http(client: Any) -> None:
    """A long prompt at two λ, twice: the second time is cached, and the answers are the first ones."""
    prompt = "+".join("12345678" * 6)
    found: dict[float, list[Any]] = {0.0: [], 1.0: []}
    for lambda_ in (0.0, 1.0, 0.0, 1.0):
        reply = client.completions.create(
            model="lab", prompt=prompt, max_tokens=8, temperature=0, logprobs=1,
            extra_body={"vllm_xargs": {"lambda": lambda_}},
        )  # fmt: skip
        cached = reply.usage.prompt_tokens_details.cached_tokens if reply.usage.prompt_tokens_details else 0
        found[lambda_].append((cached or 0, reply.choices[0].logprobs.token_logprobs))
    for first, second in found.values():
        assert (first[0], second[0] > 0) == (0, True)
        assert first[1] == pytest.approx(second[1], abs=1e-4)
    assert found[0.0][0][1] != pytest.approx(found[1.0][0][1], abs=1e-2)


def test_the_server_describes_itself(address: str, pair: Pair) -> None:
    """/info is what `dami live` says of the pair, with the engine's name; routes that would ignore λ are refused."""
    status, info = call(address, "/info")
    assert (status, info["engine"], info["model_id"]) == (200, "vllm", "lab")
    assert [info["live"][side]["name"] for side in ("instruct", "thinking")] == [side.name for side in pair]
    assert call(address, "/v1/chat/completions/batch", {"model": "lab", "messages": []})[0] == 400


def test_one_lambda_at_a_time(pair: Pair, answers: Answers, tmp_path: Path) -> None:
    """`dami live set` changes λ of a running server, which needs its key; requests under way end first."""
    with serving(pair, tmp_path / "server.log", "--mode", "uniform") as address:
        dami = [Path(sys.executable).parent / "dami", "live", "set"]
        where = ["--port", address.rsplit(":", 1)[1], "--json"]
        fields = {"model": "lab", "messages": [{"role": "user", "content": CHAIN}], "max_tokens": 160, "temperature": 0}

        def answer() -> str:
            return str(call(address, "/v1/chat/completions", fields)[1]["choices"][0]["message"]["content"])

        assert answer() == answers.chat(0.5)
        for lambda_ in (0.8, 0.0):
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                before = pool.submit(answer)
                done = subprocess.run(
                    [*dami, str(lambda_), *where, "--api-key-env", "DAMI_KEY"], timeout=300, check=True,
                    env={**os.environ, "DAMI_KEY": "secret"}, capture_output=True, text=True,
                )  # fmt: skip
                assert before.result()
            assert json.loads(done.stdout)["lambda"] == lambda_
            assert answer() == answers.chat(lambda_)
        assert call(address, "/v1/lambda", {"lambda": 0.3}, key="wrong")[0] == 401
        assert (
            call(address, "/v1/completions", {"model": "lab", "prompt": "1", "vllm_xargs": {"lambda": 0.3}})[0] == 400
        )
        assert subprocess.run([*dami, "0.3", *where], capture_output=True, timeout=100).returncode == 1
