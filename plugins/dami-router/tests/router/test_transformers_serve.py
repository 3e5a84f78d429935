"""The lab family behind the proxy, each variant served by `transformers serve`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes.processes import free_port, healthy
from fakes.waiting import until
from fakes.world import World

pytestmark = pytest.mark.slow
pytest.importorskip("fastapi", reason="transformers serve needs fastapi")
BIN = Path(sys.executable).parent
CHAIN = [{"role": "user", "content": "3+7-2>5="}]


@contextmanager
def transformers_serve(model: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serve one folder on the CPU; yields its address once it is healthy."""
    port = free_port()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [
        str(BIN / "transformers"),
        "serve",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: process.poll() is not None or healthy(url), pause=0.2)
            assert process.poll() is None, "transformers serve ended"
            yield url, process
        finally:
            process.kill()


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """The lab family's two ends, built."""
    recipe = Path(__file__).parents[4] / "merge_configs" / "lab-family.yml"
    subprocess.run([BIN / "dami", "lab", tmp_path / "lab"], check=True, capture_output=True)
    (tmp_path / "family.yml").write_text(recipe.read_text().replace("./lab", str(tmp_path / "lab")))
    build = [BIN / "dami", "build", tmp_path / "family.yml", tmp_path / "out", "--only", "0", "--only", "1"]
    subprocess.run(build, check=True, capture_output=True)
    return tmp_path / "out"


def test_efforts_reach_different_variants_and_a_killed_server_loses_nothing(world: World, family: Path) -> None:
    """A family from its manifest: low effort answers at once, high effort thinks; then one server dies in mid-load."""
    instruct, thinking = family / "lab-dami-l000", family / "lab-dami-l100"
    with transformers_serve(instruct) as (first, victim), transformers_serve(thinking) as (second, _):
        client = world.proxy(
            f"family: {family}\nbackends:\n"
            f'  - {{variant: lab-dami-l000, url: "{first}", protocol: openai, model: "{instruct}", identity: "off"}}\n'
            f'  - {{variant: lab-dami-l100, url: "{second}", protocol: openai, model: "{thinking}", identity: "off"}}\n'
        )

        def ask(effort: str) -> tuple[int, str, int]:
            body = {"messages": CHAIN, "reasoning_effort": effort, "max_tokens": 90, "temperature": 0}
            answer = client.post("/v1/chat/completions", body)
            return answer.status, answer.variant, answer.json["usage"]["completion_tokens"]

        low, high = ask("none"), ask("high")
        assert (low[0], low[1], high[0], high[1]) == (200, "lab-dami-l000", 200, "lab-dami-l100")
        assert low[2] < 5 < high[2]
        streamed = client.chat("3+7-2>5=", stream=True, reasoning_effort="high", max_tokens=20).body
        assert streamed.count(b"data:") > 5
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(ask, "none") for _ in range(40)]
            until(lambda: any(answer.done() for answer in answers))
            victim.kill()
            found = [answer.result() for answer in answers]
        assert [status for status, _, _ in found] == [200] * 40
        assert found[-1][1] == "lab-dami-l100"
        assert client.metric('dami_fallbacks_total{answered="lab-dami-l100",chosen="lab-dami-l000"}') > 0
