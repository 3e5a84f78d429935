"""`dami deploy` of a family on the Hub: from `dami push` to the files, without the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hub_server.running import RunningHub
from support.hub_state import Command

from dami_router.manifest.family import load_family


def models(folder: Path) -> list[tuple[str, str]]:
    """Return each model's repository and commit, as KServe would download it."""
    services = yaml.safe_load_all((folder / "services.yaml").read_text(encoding="utf-8"))
    uris = [one["spec"]["model"]["uri"] for one in services if one["kind"] == "LLMInferenceService"]
    return [(uri.removeprefix("hf://").rsplit(":", 1)[0], uri.rsplit(":", 1)[1]) for uri in uris]


@pytest.mark.parametrize("layout", ["repos", "branches"])
def test_a_published_family_is_deployed_by_its_id(
    layout: str, push: Command, dami: Command, family: Path, hub: RunningHub, tmp_path: Path
) -> None:
    """The Hub's id is enough: variants at the commits that push wrote, sizes from the config there, no weights read."""
    assert push("--layout", layout).code == 0
    pushed = [v.hub for v in load_family(family).variants]
    seen = len(hub.sent("safetensors"))
    done = dami("deploy", pushed[0].repo if pushed[0] else "", "--target", "kserve", "--out", tmp_path / "o")
    assert done.code == 0, done.err
    assert models(tmp_path / "o") == [(place.repo, place.revision) for place in pushed if place]
    assert len({revision for _, revision in models(tmp_path / "o")}) == 3
    assert len(hub.sent("safetensors")) == seen


def test_a_folder_is_deployed_where_it_was_pushed_from(
    push: Command, dami: Command, family: Path, tmp_path: Path
) -> None:
    """After push, the local folder names the same repositories; before it, a cluster is refused with the command."""
    refused = dami("deploy", family, "--target", "kserve", "--out", tmp_path / "o")
    assert (refused.code, "dami push" in refused.err) == (2, True)
    assert push().code == 0
    assert dami("deploy", family, "--target", "kserve", "--out", tmp_path / "o").code == 0
    assert [repo for repo, _ in models(tmp_path / "o")] == ["acme/fam-l000", "acme/fam-l050", "acme/fam-l100"]


@pytest.mark.parametrize("engine", ["vllm", "tgi"])
def test_one_machine_downloads_the_commits_of_the_manifest(
    engine: str, push: Command, dami: Command, family: Path, tmp_path: Path
) -> None:
    """Without a folder here, Compose's servers load each repository at the commit that push wrote."""
    assert push().code == 0
    pushed = {v.hub.repo: v.hub.revision for v in load_family(family).variants if v.hub}
    target = ("--target", "compose", "--engine", engine, "--out", tmp_path / "o")
    assert dami("deploy", "acme/fam-l050", *target).code == 0
    services = yaml.safe_load((tmp_path / "o" / "compose.yaml").read_text())["services"]
    found = {}
    for words in (one["command"] for name, one in services.items() if name != "router"):
        repo = words[words.index("--model-id") + 1] if engine == "tgi" else words[0]
        found[repo] = words[words.index("--revision") + 1]
    assert found == pushed


def test_a_manifest_alone_is_enough(push: Command, dami: Command, family: Path, tmp_path: Path) -> None:
    """A copy of the manifest without the variants' folders takes sizes and weights from the Hub."""
    assert push().code == 0
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "dami_family.json").write_bytes((family / "dami_family.json").read_bytes())
    done = dami("deploy", tmp_path / "alone", "--target", "compose", "--out", tmp_path / "o")
    assert done.code == 0, done.err
    services = yaml.safe_load((tmp_path / "o" / "compose.yaml").read_text())["services"]
    assert services["l050"]["command"][0] == "acme/fam-l050"


def test_offline_is_not_taken_for_a_missing_family(
    push: Command, dami: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline and not in the cache: the message says that the Hub was not asked, and what to unset."""
    from huggingface_hub import constants

    assert push().code == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = dami("deploy", "acme/fam-l000", "--target", "kserve", "--out", tmp_path / "o")
    assert done.code == 1
    assert "HF_HUB_OFFLINE=1 is set, so the Hub was not asked" in done.err
    assert "resume" not in done.err


def test_an_id_that_is_not_there_is_one_message(dami: Command, tmp_path: Path) -> None:
    """An unknown repository is a failure with its name, and nothing is written."""
    done = dami("deploy", "acme/nothing", "--target", "kserve", "--out", tmp_path / "o")
    assert done.code == 1
    assert "acme/nothing" in done.err
    assert not (tmp_path / "o").exists()
