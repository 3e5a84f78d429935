"""`dami serve`, `dami route` and `dami ask` as processes: real signals, real exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes.upstream import chat, chunk, plain, stream
from fakes.world import World, router_yml

DAMI = [sys.executable, "-c", "from dami_router.cli import main; main()"]


def dami(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DAMI, *arguments], capture_output=True, text=True, timeout=300, check=False)


@contextmanager
def serving(config: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `dami serve` at a free port; yields the process and its address."""
    command = [*DAMI, "serve", str(config), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = "".join(process.stdout.readline() for _ in range(3))
        try:
            yield process, json.loads(lines)["address"]
        finally:
            process.kill()


@pytest.fixture
def config(world: World, tmp_path: Path) -> Path:
    """A router.yml for two living servers."""
    path = tmp_path / "router.yml"
    path.write_text(router_yml(*(zip(("v-l000", "v-l100"), world.pair(plain(data=chat("a"))), strict=True))))
    return path


def test_sigterm_finishes_what_is_under_way(world: World, tmp_path: Path) -> None:
    """A stream that has begun is read to its end after SIGTERM, new connections are refused, the exit code is 0."""
    pieces = [*[chunk(str(i)) for i in range(8)], b"data: [DONE]\n\n"]
    path = tmp_path / "router.yml"
    path.write_text(router_yml(("v-l000", world.upstream("v-l000", stream(*pieces, delay=0.1)))))
    with serving(path) as (process, address):
        body = json.dumps({"messages": [], "stream": True}).encode()
        reply = urllib.request.urlopen(f"{address}/v1/chat/completions", body, timeout=60)
        received = reply.readline()
        process.send_signal(signal.SIGTERM)
        received += reply.read()
        assert received == b"".join(pieces)
        assert process.wait(60) == 0
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(f"{address}/health", timeout=20)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_draining_has_an_end(world: World, tmp_path: Path) -> None:
    """A request that never ends is cut after `drain` seconds."""
    server = world.upstream("v-l000", stream(chunk("1"), hang=True))
    path = tmp_path / "router.yml"
    path.write_text(router_yml(("v-l000", server), extra="limits: {drain: 1}\ntimeouts: {connect: 20, idle: 600}"))
    with serving(path) as (process, address):
        body = json.dumps({"messages": [], "stream": True}).encode()
        reply = urllib.request.urlopen(f"{address}/v1/chat/completions", body, timeout=60)
        threading.Thread(target=reply.readline).start()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_route_and_ask_answer_on_stdout(config: Path) -> None:
    """`route` shows the decision, `ask` the answer; both as JSON for machines."""
    routed = dami("route", str(config), "2+2?", "--effort", "max", "--json")
    assert json.loads(routed.stdout)["variant"] == "v-l100"
    asked = dami("ask", str(config), "2+2?", "--model", "dami:0")
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, "a\n", "λ = 0 by pinned, answered by v-l000\n")
    assert json.loads(dami("ask", str(config), "2+2?", "--json").stdout)["answered_by"] == "v-l000"


def test_check_says_who_answers(world: World, tmp_path: Path) -> None:
    """--check exits 1 with a table where a server is down or serves another model, 0 where all is well."""
    path = tmp_path / "router.yml"
    good, wrong = world.tgi("v-l000"), world.tgi("v-l050")
    path.write_text(router_yml(("v-l000", good), ("v-l100", wrong)))
    found = dami("serve", str(path), "--check")
    assert found.returncode == 1
    assert "serves v-l050, expected v-l100" in found.stdout
    wrong.model_id = "v-l100"
    found = dami("serve", str(path), "--check", "--json")
    assert found.returncode == 0
    assert json.loads(found.stdout)["backends"][0]["capabilities"]["prompt_log_probs"] is True


def test_what_keeps_it_from_serving_is_one_message(world: World, tmp_path: Path, config: Path) -> None:
    """A wrong file is exit code 2; a wrong server and a taken port are 1; never a traceback."""
    path = tmp_path / "wrong.yml"
    assert dami("serve", str(path)).returncode == 2
    path.write_text(router_yml(("v-l000", world.tgi("v-l100"))))
    wrong = dami("serve", str(path), "--port", "0")
    assert (wrong.returncode, "serves v-l100, expected v-l000" in wrong.stderr) == (1, True)
    taken = dami("serve", str(config), "--port", str(world.upstream("x").port))
    assert (taken.returncode, "no server could start" in taken.stderr) == (1, True)
    nobody = dami("ask", str(config), "x", "--model", "v-l1000")
    assert (nobody.returncode, "did you mean `v-l100`?" in nobody.stderr) == (2, True)
    assert not any("Traceback" in done.stderr for done in (wrong, taken, nobody))
