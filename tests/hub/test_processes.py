"""The commands as a user runs them: in processes of their own, killed half way, with everything they write searched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.waiting import until
from hub_server.running import TOKEN, RunningHub
from support.builds import tree
from support.hub_state import Command, nothing_half_published, published

from dami_router.manifest.family import MANIFEST

ROOT = Path(__file__).parents[2]
PUSH = ("--namespace", "acme", "--license", "apache-2.0")


@pytest.fixture
def environment(hub: RunningHub, tmp_path: Path) -> dict[str, str]:
    """What docs/publish.md tells a user to set, and a home of its own."""
    return {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
    }  # fmt: skip


def start(environment: dict[str, str], *arguments: object) -> subprocess.Popen[str]:
    """Start the installed command."""
    program = Path(sys.executable).with_name("dami")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([program, *map(str, arguments)], env=environment, **pipes)  # type: ignore[call-overload,no-any-return]


def run(environment: dict[str, str], *arguments: object) -> tuple[int, str, str]:
    """Run the installed command; return exit code, stdout and stderr."""
    process = start(environment, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for(hub: RunningHub, request: str, count: int = 1) -> None:
    """Wait until the Hub got a request so many times."""
    until(lambda: len(hub.sent(request)) >= count)


@pytest.mark.parametrize(("request_", "skip"), [("PUT /lfs/", 2), ("/commit/", 4), ("/api/collections", 1)])
def test_a_killed_push_goes_on(
    hub: RunningHub, environment: dict[str, str], family: Path, request_: str, skip: int
) -> None:
    """Killed during an upload, a commit or the collection, the same command ends with the same family."""
    hub.faults.plan(request_, hang=600, skip=skip)
    process = start(environment, "push", family, *PUSH)
    wait_for(hub, request_, skip + 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert nothing_half_published(hub, family)
    code, _, err = run(environment, "push", family, *PUSH)
    assert code == 0, err
    assert published(hub, family)


def test_an_interrupt_ends_at_once(hub: RunningHub, environment: dict[str, str], family: Path) -> None:
    """Ctrl-C during an upload does not wait for it: one line, exit code 130, nothing half published."""
    hub.faults.plan("PUT /lfs/", hang=600, times=99)
    process = start(environment, "push", family, *PUSH)
    wait_for(hub, "PUT /lfs/")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped; the same command goes on" in err
    assert "Traceback" not in err
    assert nothing_half_published(hub, family)


def test_a_killed_pull_goes_on(
    hub: RunningHub, push: Command, environment: dict[str, str], family: Path, tmp_path: Path
) -> None:
    """Killed during a download, the same command finishes; small files that were checked are not fetched again."""
    out = tmp_path / "copy"
    assert push().code == 0
    hub.faults.plan("GET /lfs/objects", hang=600)
    process = start(environment, "pull", "acme/fam-l050", out, "--jobs", "1")
    wait_for(hub, "GET /lfs/objects")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert {path.name for path in out.iterdir()} == {".dami_pull"}
    log = len(hub.faults.log)
    code, _, err = run(environment, "pull", "acme/fam-l050", out)
    assert code == 0, err
    assert not [line for line in hub.faults.log[log:] if line.endswith("/config.json")]
    assert tree(out / "fam-l050") == tree(family / "fam-l050")


def test_no_token_is_ever_shown(hub: RunningHub, environment: dict[str, str], family: Path, tmp_path: Path) -> None:
    """Neither output, errors with DAMI_DEBUG and the library's own logs, nor files hold the token or a part of it."""
    loud = {**environment, "DAMI_DEBUG": "1", "HF_DEBUG": "0", "HF_HUB_VERBOSITY": "debug"}
    hub.faults.plan("POST .*/commit/", status=403, message=f"token {TOKEN} may not", times=1)
    texts = [run(environment, "push", family, *PUSH), run(loud, "push", family, *PUSH)]
    hub.faults.plan("GET /lfs/objects", status=403, message=f"token {TOKEN} may not", times=1)
    texts.append(run(environment, "pull", "acme/fam-l050", tmp_path / "copy"))
    assert [code for code, _, _ in texts] == [1, 0, 1]
    for _, out, err in texts:
        assert TOKEN not in out + err
        assert TOKEN[3:] not in out + err
    written = {**tree(family), **tree(tmp_path / "copy"), **hub.store.blobs}
    assert not [name for name, data in written.items() if TOKEN[3:].encode() in data]


def test_the_documented_way_works(environment: dict[str, str], tmp_path: Path) -> None:
    """The commands of docs/publish.md, taken from it, run from a clean folder: build, push, pull, verify."""
    text = (ROOT / "docs" / "publish.md").read_text(encoding="utf-8")
    block = text.split("## Try it without the Hub", 1)[1].split("```")[3]
    lines = [line.split("#")[0].split() for line in block.strip().splitlines()]
    assert [line[1] for line in lines] == ["lab", "build", "push", "pull", "verify"]
    (tmp_path / "merge_configs").symlink_to(ROOT / "merge_configs")
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        for line in lines:
            code, _, err = run(environment, *line[1:])
            assert code == 0, err
    finally:
        os.chdir(here)
    assert (tmp_path / "copy" / MANIFEST).is_file()


def test_the_light_half_reads_a_family_without_the_heavy_one(push: Command, environment: dict[str, str]) -> None:
    """open_family from the Hub imports neither torch nor what publishes."""
    assert push().code == 0
    code = (
        "import sys; from dami_router.manifest.published import open_family; f = open_family('acme/fam-l050'); "
        "assert [v.hub.repo for v in f.variants][1] == 'acme/fam-l050'; "
        "assert not {'torch', 'transformers', 'dami_merge.hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
