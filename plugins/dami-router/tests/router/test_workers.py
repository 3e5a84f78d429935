"""Several processes of `dami serve` behind one port: what they share, and that they end and come back."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.upstream import Upstream
from fakes.waiting import until
from fakes.world import World, router_yml

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")


class Service:
    """A running `dami serve --workers 2`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None, process.wait(60)
        self.url = found[0]

    @property
    def workers(self) -> set[int]:
        """The process ids of the workers."""
        pid = self.process.pid
        return {int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()}

    def ask(self, path: str, data: Any = None) -> tuple[dict[str, str], str]:
        """Send a request on a connection of its own; returns headers and body."""
        body = None if data is None else json.dumps(data).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, body), timeout=60) as reply:
            return {k.lower(): v for k, v in reply.headers.items()}, reply.read().decode()

    def answers(self) -> bool:
        """Whether a request is answered."""
        try:
            return bool(self.ask("/health"))
        except OSError:
            return False

    def counted_by(self) -> set[str]:
        """The workers that answer `/metrics` to 20 connections."""
        return {n for _ in range(20) for n in re.findall(r'dami_up{.*worker="(\d+)"', self.ask("/metrics")[1])}


def started(tmp_path: Path, text: str) -> subprocess.Popen[str]:
    path = tmp_path / "router.yml"
    path.write_text(text)
    dami = str(Path(sys.executable).parent / "dami")
    command = [dami, "serve", str(path), "--port", "0", "--workers", "2", "--no-ui"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.fixture
def service(world: World, tmp_path: Path) -> Iterator[tuple[Service, list[Upstream]]]:
    low = [world.upstream("v-l000"), world.upstream("v-l000")]
    servers = [*low, world.upstream("v-l100")]
    text = router_yml(*zip(("v-l000", "v-l000", "v-l100"), servers, strict=True), extra="policy: {choose: dithered}")
    with started(tmp_path, text) as process:
        try:
            yield Service(process), servers
        finally:
            process.kill()


def chat(text: str, model: str = "dami:0") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def test_two_processes_behind_one_port_decide_alike(service: tuple[Service, list[Upstream]]) -> None:
    """Both answer; a conversation has one replica, and a dithered request one variant, whichever process gets it."""
    running, servers = service
    until(lambda: running.counted_by() == {"0", "1"})
    for _ in range(20):
        running.ask("/v1/chat/completions", chat("hi"))
    assert sorted(len(server.calls) for server in servers[:2]) == [0, 20]
    for number in range(6):
        asked = [running.ask("/v1/chat/completions", chat(f"{number}", "dami:0.5"))[0] for _ in range(8)]
        assert len({headers["x-dami-variant"] for headers in asked}) == 1
    ids = [running.ask("/health")[0]["x-request-id"] for _ in range(40)]
    assert len(set(ids)) == 40


def test_a_worker_that_dies_is_started_again_and_sigterm_ends_all(service: tuple[Service, list[Upstream]]) -> None:
    """The other one answers meanwhile; in the end no process is left, and the exit code is 0."""
    running, _ = service
    before = until(lambda: running.workers if len(running.workers) == 2 else None)
    assert before is not None
    os.kill(min(before), signal.SIGKILL)
    until(running.answers)
    until(lambda: len(running.workers - before) == 1 and len(running.workers) == 2)
    until(lambda: running.counted_by() == {"0", "1"})
    workers = running.workers
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_workers_end_with_the_process_that_started_them(service: tuple[Service, list[Upstream]]) -> None:
    """Killed, it can tell them nothing; they notice."""
    running, _ = service
    workers = running.workers
    running.process.kill()
    running.process.wait(60)
    until(lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()])


def test_a_worker_that_cannot_start_ends_them_all(world: World, tmp_path: Path) -> None:
    """A server of the wrong model: exit code 1 and no address, as with one process."""
    with started(tmp_path, router_yml(("v-l000", world.upstream("another")))) as process:
        assert process.wait(60) == 1
        assert process.stdout is not None
        assert process.stdout.read() == ""
