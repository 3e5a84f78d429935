"""What a live server says of its files while and after they are hashed."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
from fakes.loop import Loop
from support.live_servers import served, wait_for_hashes

from dami_merge.files.hashing import file_sha256
from dami_merge.live import Engine
from dami_merge.live_server import describing
from dami_merge.live_server.describing import Description
from dami_merge.live_server.launch import configure
from dami_router.config.router_yml import load_section

WEIGHTS = "model.safetensors"


def test_hashes_are_told_as_soon_as_they_are_known(
    loop: Loop, eight: Engine, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """/info says what is known when it is asked, not what was known when the server was last probed."""
    gate = threading.Event()

    def slowly(path: Path) -> str:
        gate.wait(60)
        return file_sha256(path)

    monkeypatch.setattr(describing, "file_sha256", slowly)
    with served(loop, eight, configure(eight, load_section(None)), hashed=False) as client:
        assert client.get("/info").json["live"]["thinking"]["files"] == {}
        gate.set()
        wait_for_hashes()
        told = client.get("/info").json["live"]
    for side, folder in zip(("instruct", "thinking"), pair, strict=True):
        assert told[side]["files"] == {WEIGHTS: file_sha256(Path(folder) / WEIGHTS)}


def test_a_file_that_cannot_be_read_has_no_hash_and_a_warning(
    eight: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server goes on without the hash, and its log says which file and why."""

    def fails(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(describing, "file_sha256", fails)
    description = Description(eight, "uniform")
    with caplog.at_level(logging.WARNING):
        description.hash()
    assert description.files == {"instruct": {}, "thinking": {}}
    assert [f"{WEIGHTS}: cannot be read: Input/output error" in line for line in caplog.messages] == [True, True]
