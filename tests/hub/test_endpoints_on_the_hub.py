"""Endpoints that are Hub ids: check and explain from headers alone, merge, build and verify from the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server.running import TOKEN, RunningHub, running

from dami_router.errors import FailureError
from dami_router.imports.token_counts import TokenCounter

Run = Callable[..., subprocess.CompletedProcess[str]]

RECIPE = (
    "merge_method: dami\nbase_model: acme/lab-instruct\nmodels:\n  - model: acme/lab-thinking\n"
    "parameters: {lambda: 0.5}\nfamily: {name: hub-family, lambdas: [0, 0.5, 1]}\n"
)


@pytest.fixture(scope="module")
def hub() -> Iterator[RunningHub]:
    """A Hub that has the lab pair, with the files that every real repository has beside the model's."""
    from huggingface_hub import HfApi, constants

    from dami_merge.lab import SHIPPED_PAIR

    with running() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        api = HfApi(hub.url, token=TOKEN)
        for side in ("instruct", "thinking"):
            api.create_repo(f"acme/lab-{side}")
            api.upload_folder(repo_id=f"acme/lab-{side}", folder_path=SHIPPED_PAIR / side)
            api.upload_file(
                repo_id=f"acme/lab-{side}",
                path_or_fileobj=b"---\nlicense: apache-2.0\n---\n# Lab",
                path_in_repo="README.md",
            )
        yield hub


@pytest.fixture
def run(hub: RunningHub, tmp_path: Path) -> Run:
    """Run an installed command in its own process, in an empty folder with an empty cache."""
    (tmp_path / "recipe.yml").write_text(RECIPE)
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name(str(arguments[0]))
        command = [str(program), *map(str, arguments[1:])]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)

    return run


def test_check_and_explain_download_no_weights(run: Run, tmp_path: Path, hub: RunningHub) -> None:
    """`dami check` and `dami explain` read configs and headers from the Hub; no weight file arrives here."""
    done = run("dami", "check", "recipe.yml", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["findings"] == []
    assert data["architecture"] == "Qwen3ForCausalLM"
    assert data["download_bytes"] == 2 * data["bytes_per_variant"]
    explained = run("dami", "explain", "recipe.yml", "--json")
    assert json.loads(explained.stdout)["layers"] == 4
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_one_commit_can_be_named(run: Run, tmp_path: Path, hub: RunningHub) -> None:
    """`id@revision` is looked at as it was; an unknown repository or revision is one message."""
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(RECIPE.replace("acme/lab-instruct", "acme/lab-instruct@main"))
    assert run("dami", "check", "recipe.yml").returncode == 0
    for wrong in ("acme/lab-instruct@nope", "acme/nothing"):
        recipe.write_text(RECIPE.replace("acme/lab-instruct", wrong))
        done = run("dami", "check", "recipe.yml")
        assert done.returncode == 1
        assert "no such repository or revision on the Hub" in done.stderr
        assert "Traceback" not in done.stderr


def test_no_hub_in_reach_is_one_message(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the message says that neither folder nor Hub is there."""
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    program = Path(sys.executable).with_name("dami")
    done = subprocess.run(
        [program, "check", "recipe.yml"], capture_output=True, text=True, check=False, cwd=tmp_path, env=env
    )
    assert done.returncode == 1
    assert "the Hub cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("request_", "fault", "says"),
    [
        ("HEAD .*/config.json", {"lost": True}, "config.json: the connection to the Hub broke"),
        ("GET .*/config.json", {"cut": 0, "answer": True}, "config.json: the connection to the Hub broke"),
        ("HEAD .*/config.json", {"status": 500}, "config.json: the Hub answers 500"),
        ("HEAD .*/tokenizer_config.json", {"lost": True}, "tokenizer_config.json: the connection to the Hub broke"),
        ("GET .*/special_tokens_map.json", {"cut": 9, "answer": True}, "the download of acme/lab-instruct: the connec"),
    ],
)
def test_a_connection_lost_between_two_files_is_no_missing_file(
    hub: RunningHub, dami: Run, tmp_path: Path, request_: str, fault: dict[str, Any], says: str
) -> None:
    """A connection that breaks, and a Hub in trouble, are called that; no file counts as missing."""
    (tmp_path / "recipe.yml").write_text(RECIPE)
    hub.faults.forget()
    hub.faults.plan(request_, **{"times": 99, **fault})
    failed = dami("build", tmp_path / "recipe.yml", tmp_path / "out")
    hub.faults.forget()
    assert failed.code == 1
    assert says in failed.err
    assert not (tmp_path / "out").exists()


def test_a_file_that_the_hub_lacks_is_missing(hub: RunningHub, dami: Run, tmp_path: Path) -> None:
    """A repository of weights alone has no config.json, and one without a tokenizer.json has no such file."""
    from huggingface_hub import HfApi

    from dami_merge.lab import SHIPPED_PAIR

    api = HfApi(hub.url, token=TOKEN)
    api.create_repo("acme/bare")
    api.upload_folder(repo_id="acme/bare", folder_path=SHIPPED_PAIR / "instruct", allow_patterns="*.safetensors")
    (tmp_path / "recipe.yml").write_text(RECIPE.replace("acme/lab-instruct", "acme/bare"))
    failed = dami("check", tmp_path / "recipe.yml")
    assert (failed.code, "acme/bare: the repository has no config.json" in failed.err) == (1, True)
    with pytest.raises(FailureError, match="the tokenizer of acme/bare: the repository has no such file"):
        TokenCounter("acme/bare")


def test_build_pins_the_commit_and_verify_reads_the_cache(run: Run, tmp_path: Path) -> None:
    """The manifest names the endpoints' commits, and verify finds the endpoints in the library's cache."""
    built = run("dami", "build", "recipe.yml", "family")
    assert built.returncode == 0, built.stderr
    endpoints = json.loads((tmp_path / "family" / "dami_family.json").read_text())["endpoints"]
    assert len(endpoints["instruct"]["commit"]) == 40
    verified = run("dami", "verify", "family", "--deep")
    assert verified.returncode == 0, verified.stderr
    assert "not on this machine" not in verified.stderr


def test_the_live_engine_takes_endpoints_from_the_hub(run: Run) -> None:
    """Hub ids, one of them at a revision, are downloaded to the cache and answer from memory."""
    script = """
from dami_merge.live import Engine

engine = Engine.load("acme/lab-instruct", "acme/lab-thinking@main", dtype="float32")
print(engine.name, *(answer.text for answer in engine.generate(["<bos>8-1="] * 2, [0.0, 1.0])))
"""
    done = run("python", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["lab-DAMI", "7", "<think>8-1=7|8-1=7</think>7"]
