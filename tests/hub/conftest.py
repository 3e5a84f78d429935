"""Fixtures of the Hub's tests: a local Hub, a family to publish, and the command line pointed there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server.running import TOKEN, RunningHub, running
from support.builds import build
from support.hub_state import RECIPE, Answer

from dami_router import cli


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped lab pair, in a folder of its own. Read only."""
    from dami_merge.lab import copy_pair

    folder = tmp_path_factory.mktemp("hub") / "lab"
    copy_pair(folder)
    return folder


@pytest.fixture(scope="session")
def built(lab: Path) -> Path:
    """A family of three variants of the lab pair. Read only."""
    out = lab.parent / "fam"
    build(RECIPE.format(lab, "uniform"), out)
    return out


@pytest.fixture
def family(built: Path, tmp_path: Path) -> Path:
    """A copy of the family that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "fam"))


@pytest.fixture(scope="session")
def server() -> Iterator[RunningHub]:
    """A Hub on loopback for the whole session."""
    with running() as running_hub:
        yield running_hub


@pytest.fixture
def hub(server: RunningHub) -> RunningHub:
    """An empty Hub on loopback."""
    server.reset()
    return server


@pytest.fixture
def dami(
    hub: RunningHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """Run a command in this process against the local Hub; the library's waits between tries take no time."""
    from huggingface_hub import constants, file_download, utils

    import dami_merge.hub.upload

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for module in (utils._http, file_download, dami_merge.hub.upload):
        monkeypatch.setattr(module.time, "sleep", lambda _: None)

    def run(*arguments: object) -> Answer:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        assert TOKEN not in out + err
        return Answer(caught.value.code, out, err)

    return run


@pytest.fixture
def push(dami: Callable[..., Answer], family: Path) -> Callable[..., Answer]:
    """Push the family to `acme`."""

    def run(*more: object) -> Answer:
        return dami("push", family, "--namespace", "acme", "--license", "apache-2.0", *more)

    return run
