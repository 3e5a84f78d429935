"""Real processes: `dami live` as a user starts it, killed and terminated, and `dami serve` in front of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes.upstream import chat, plain
from fakes.world import World
from openai import OpenAI

from dami_merge.live import Engine

DAMI = [sys.executable, "-c", "from dami_router.cli import main; main()"]
CHAIN = "3+7-2>5="


class Process:
    """A `dami live` at a free port; `address` waits until it takes requests."""

    def __init__(self, pair: tuple[str, str], *options: str) -> None:
        command = [*DAMI, "live", *pair, "--port", "0", "--json", *options]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        self._address = ""

    @property
    def address(self) -> str:
        if not self._address:
            assert self.process.stdout is not None
            said = "".join(self.process.stdout.readline() for _ in range(4))
            assert said, self.process.communicate()[1]
            self._address = json.loads(said)["address"]
        return self._address

    def ended(self) -> tuple[int, str]:
        """Wait for the end; return exit code and standard error."""
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def processes(pair: tuple[str, str]) -> Iterator[tuple[Process, Process]]:
    """Two processes, started at the same time: one to be killed, one to be terminated."""
    made = (Process(pair), Process(pair, "--max-rows", "4", "--name", "Lab"))
    yield made
    for process in made:
        process.close()


def test_a_live_process_behind_dami_serve_dies_mid_load_and_nothing_is_lost(
    processes: tuple[Process, Process], world: World, alone: Engine
) -> None:
    """λ reaches the process exactly; when it is killed under load, a healthy variant answers what it had not begun."""
    live, _ = processes
    fallback = world.upstream("v-l100", plain(data=chat("fallback")))
    text = (
        "variants: [{id: v-l100, lambda: 1}]\nbackends:\n"
        f'  - {{url: "{live.address}", protocol: live, instruct: instruct, thinking: thinking}}\n'
        f'  - {{variant: v-l100, url: "{fallback.url}", protocol: openai}}\nretries: {{backoff: 0.001}}\n'
    )
    client = world.proxy(text)
    assert alone.texts is not None
    ids = alone.texts.encode_chat([{"role": "user", "content": CHAIN}], 0.5)
    wanted = [done.text for done in alone.generate([ids] * 8, [i / 10 for i in range(8)], max_new_tokens=160)]
    answers: list[Any] = []

    def ask(i: int) -> None:
        answers.append((i, client.chat(CHAIN, model=f"dami:0.{i % 8}")))
        if len(answers) >= 24:
            live.process.kill()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(72)))
    assert {answer.status for _, answer in answers} == {200}
    by_live = [(i, a) for i, a in answers if a.variant != "v-l100"]
    assert len(by_live) >= 16
    assert len(answers) - len(by_live) >= 24
    for i, answer in by_live:
        assert answer.variant == f"dami:0.{i % 8}".replace("dami:0.0", "dami:0")
        assert answer.json["choices"][0]["message"]["content"] == wanted[i % 8]
    assert client.metric('dami_fallbacks_total{answered="v-l100",chosen="live"}') >= 1


def test_sigterm_finishes_what_is_under_way(processes: tuple[Process, Process]) -> None:
    """A client reads its stream to the end after SIGTERM; the exit code is 0, and no prompt is logged."""
    _, live = processes
    with OpenAI(base_url=f"{live.address}/v1", api_key="unused", max_retries=0) as client:
        stream = client.completions.create(
            model="dami:1", prompt="<bos>8-7>6=", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
        )
        events = iter(stream)
        pieces = [next(events).choices[0].text]
        live.process.send_signal(signal.SIGTERM)
        threading.Event().wait(0.1)
        pieces += [event.choices[0].text for event in events]
    assert len(pieces) > 150
    code, errors = live.ended()
    assert code == 0
    assert "Traceback" not in errors
    assert "8-7>6=" not in errors
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{live.address}/health", timeout=20)


def test_what_keeps_it_from_serving_is_one_message(pair: tuple[str, str], tmp_path: Path) -> None:
    """A missing key, a missing folder, a taken port, a wrong section: one message, before anything is loaded."""

    def dami(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [*DAMI, "live", "--port", "0", *arguments], capture_output=True, text=True, timeout=300, check=False
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    code, said = dami(pair[0], str(tmp_path / "nowhere"), "--api-key-env", "NOT_SET_ANYWHERE")
    assert (code, "NOT_SET_ANYWHERE" in said) == (2, True)
    code, said = dami(pair[0], str(tmp_path / "nowhere"))
    assert (code, "nowhere" in said) == (1, True)
    nowhere = str(tmp_path / "nowhere")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said = dami(nowhere, nowhere, "--port", port)
    assert (code, f"127.0.0.1:{port}: Address already in use" in said) == (1, True)
    (tmp_path / "section.yml").write_text("thinking: spilt\n")
    code, said = dami(nowhere, nowhere, "--router", str(tmp_path / "section.yml"))
    assert (code, "section.yml:1: thinking" in said) == (2, True)
