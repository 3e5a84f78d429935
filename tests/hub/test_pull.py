"""`dami pull`: what is fetched, what is checked, what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hub_server.running import RunningHub
from hub_server.store import Repo
from support.builds import tree
from support.hub_state import Command

from dami_merge.hub.local_paths import without_local_paths
from dami_router.errors import CheckpointError, FailureError, MisuseError
from dami_router.manifest.family import MANIFEST, load_family
from dami_router.manifest.published import open_family


@pytest.fixture(scope="module")
def once() -> dict[str, Any]:
    """What the first push of this file left, for the tests after it."""
    return {}


@pytest.fixture
def there(hub: RunningHub, push: Command, family: Path, once: dict[str, Any]) -> None:
    """Publish the family as repositories."""
    if not once:
        assert push().code == 0
        once |= {"store": copy.deepcopy(hub.store), "manifest": (family / MANIFEST).read_bytes()}
    hub.hub.store = copy.deepcopy(once["store"])
    (family / MANIFEST).write_bytes(once["manifest"])


def slug(hub: RunningHub) -> str:
    """Return the slug of the one collection."""
    (found,) = hub.store.collections
    return found


def same_files(out: Path, family: Path, *variants: str) -> bool:
    """Whether `out` holds these variants as `family` does, a manifest, and nothing else."""
    mine = {name: data for name, data in tree(out).items() if name != MANIFEST}
    return mine == {name: data for name, data in tree(family).items() if name.split("/")[0] in variants}


ALL = ("fam-l000", "fam-l050", "fam-l100")


@pytest.mark.usefixtures("there")
def test_a_collection_gives_the_whole_family(hub: RunningHub, dami: Command, family: Path, tmp_path: Path) -> None:
    """Pulling a collection gives the same files and manifest as were pushed, and `dami verify` finds them sound."""
    out = tmp_path / "copy"
    done = dami("pull", slug(hub), out, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["fetched"] == list(ALL)
    assert same_files(out, family, *ALL)
    assert load_family(out) == without_local_paths(load_family(family))
    assert dami("verify", out).code == 0


@pytest.mark.usefixtures("there")
def test_variants_come_one_by_one(hub: RunningHub, dami: Command, family: Path, tmp_path: Path) -> None:
    """A variant's repository gives that variant; a second one joins it; a third pull of the first fetches nothing."""
    out = tmp_path / "copy"
    dami("pull", "acme/fam-l050", out)
    assert same_files(out, family, "fam-l050")
    assert dami("verify", out).code == 0
    dami("pull", f"{hub.url}/acme/fam-l000", out)
    assert same_files(out, family, "fam-l000", "fam-l050")
    assert [v.id for v in load_family(out).variants] == ["fam-l000", "fam-l050"]
    data = json.loads(dami("pull", "acme/fam-l050", out, "--json").out)
    assert (data["fetched"], data["kept"], data["bytes_fetched"]) == ([], ["fam-l050"], 0)


def test_branches_come_together_or_alone(push: Command, dami: Command, family: Path, tmp_path: Path) -> None:
    """A repository with branches gives the family, and one of them as ID@branch."""
    push("--layout", "branches")
    assert dami("pull", "acme/fam", tmp_path / "all").code == 0
    assert same_files(tmp_path / "all", family, *ALL)
    assert dami("pull", "acme/fam@l050", tmp_path / "one").code == 0
    assert same_files(tmp_path / "one", family, "fam-l050")


@pytest.mark.usefixtures("there")
def test_a_copy_under_another_owner_can_be_pulled(hub: RunningHub, dami: Command, family: Path, tmp_path: Path) -> None:
    """A repository duplicated to another namespace gives its variant, from there and not from the original."""
    original = hub.store.repos["acme/fam-l050"]
    hub.store.repos["ann/fam-l050"] = Repo("ann/fam-l050", False, original.commits, original.branches)
    log = len(hub.faults.log)
    assert dami("pull", "ann/fam-l050", tmp_path / "copy").code == 0
    assert same_files(tmp_path / "copy", family, "fam-l050")
    assert not [line for line in hub.faults.log[log:] if "acme" in line]


@pytest.mark.usefixtures("there")
def test_a_cut_download_goes_on_where_it_stopped(
    hub: RunningHub, dami: Command, family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that breaks again and again fails the pull, with no file in place; the next asks for the rest."""
    out = tmp_path / "copy"
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 14)
    hub.faults.plan("GET /lfs/objects", cut=100_000, answer=True, times=2)
    hub.faults.plan("GET /lfs/objects", cut=0, answer=True, times=99)
    failed = dami("pull", "acme/fam-l050", out)
    assert failed.code == 1
    assert "connection to the Hub broke" in failed.err
    assert not [name for name in tree(out) if not name.startswith(".dami_pull/")]
    hub.faults.planned.clear()
    assert dami("pull", "acme/fam-l050", out).code == 0
    ranges = [h["range"] for line, h in zip(hub.faults.log, hub.faults.headers, strict=True)
              if line.startswith("GET /lfs/objects") and "range" in h]  # fmt: skip
    assert int(ranges[-1].removeprefix("bytes=").rstrip("-")) >= 100_000
    assert same_files(out, family, "fam-l050")


@pytest.mark.parametrize(
    ("match", "status", "says"),
    [
        ("GET .*/resolve/.*config.json", 500, "the Hub answers 500"),
        ("GET /lfs/objects", 503, "the Hub answers 503"),
        ("HEAD .*/resolve/.*model.safetensors", 429, "asks to slow down"),
        ("POST .*/paths-info", 500, "the Hub answers 500"),
        ("HEAD .*dami_family.json", 404, "no such repository"),
        ("GET /api/collections", 500, "the Hub answers 500"),
    ],
)
@pytest.mark.usefixtures("there")
def test_a_pull_that_fails_goes_on(
    hub: RunningHub, dami: Command, family: Path, tmp_path: Path, match: str, status: int, says: str
) -> None:
    """Whatever request keeps failing, the pull says so and leaves no manifest; the next one finishes."""
    out = tmp_path / "copy"
    hub.faults.plan(match, status=status, times=99)
    failed = dami("pull", slug(hub), out)
    assert failed.code == 1
    assert says in failed.err
    assert not (out / MANIFEST).exists()
    hub.faults.planned.clear()
    assert dami("pull", slug(hub), out).code == 0
    assert same_files(out, family, *ALL)


@pytest.mark.usefixtures("there")
def test_a_file_that_was_tampered_with_is_never_named(hub: RunningHub, dami: Command, tmp_path: Path) -> None:
    """Content that is not what the manifest says stops the pull; no variant and no manifest is in the folder."""
    out = tmp_path / "copy"
    sha256 = hub.store.repos["acme/fam-l050"].resolve("main").files["model.safetensors"].sha256
    hub.store.blobs[sha256] = bytes(len(hub.store.blobs[sha256]))
    failed = dami("pull", slug(hub), out)
    assert failed.code == 1
    assert "model.safetensors does not match its sha256 in the manifest" in failed.err
    assert {path.name for path in out.iterdir()} == {".dami_pull"}


def replace_manifest(hub: RunningHub, repo_id: str, change: Any) -> None:
    """Commit a changed manifest to a repository, as its owner could."""
    repo = hub.store.repos[repo_id]
    head = repo.resolve("main")
    data = json.loads(hub.store.blobs[head.files[MANIFEST].sha256])
    change(data)
    files = {**head.files, MANIFEST: hub.store.regular(json.dumps(data).encode())}
    hub.store.write(repo, "main", "evil", files, head.sha)


def rename(old: str, new: str, key: str = "files") -> Any:
    """Return a change that renames a file of the first variant, or sets another of its fields."""

    def change(data: dict[str, Any]) -> None:
        variant = data["variants"][1]
        if key == "files":
            variant["files"][new] = variant["files"].pop(old)
        elif key == "repo":
            variant["hub"]["repo"] = new
        else:
            variant[key] = new

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (rename("config.json", "../config.json"), "String should match pattern"),
        (rename("config.json", "/etc/passwd"), "String should match pattern"),
        (rename("config.json", "a/b.json"), "String should match pattern"),
        (rename("config.json", ".bashrc"), "String should match pattern"),
        (rename("config.json", "modeling_evil.py"), "could hold code"),
        (rename("config.json", "pytorch_model.BIN"), "could hold code"),
        (rename("", "../fam", "folder"), "String should match pattern"),
        (rename("", MANIFEST, "folder"), "folder is named"),
        (rename("", "../../repo", "repo"), "String should match pattern"),
        (lambda data: data.update(surprise=1), "surprise"),
        (lambda data: data["variants"][1]["files"].update({"more.json": "0" * 64}), "is in the manifest but not in"),
        (lambda data: data.update(recipe="x" * (2 << 20)), "recipe"),
    ],
    ids=[
        "parent", "absolute", "subfolder", "hidden", "python", "pickle", "folder", "folder is manifest", "repo",
        "unknown field", "missing file", "long recipe",
    ],
)  # fmt: skip
@pytest.mark.usefixtures("there")
def test_a_hostile_manifest_is_refused(hub: RunningHub, dami: Command, tmp_path: Path, change: Any, says: str) -> None:
    """A manifest that names what it should not is refused, and nothing is written outside or inside the folder."""
    replace_manifest(hub, "acme/fam-l050", change)
    before = sorted(path.name for path in tmp_path.iterdir() if path.name != "hf-cache")
    failed = dami("pull", "acme/fam-l050", tmp_path / "out" / "copy")
    assert failed.code == 1
    assert says in failed.err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name not in ("hf-cache", "out")) == before
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != "lock"]


@pytest.mark.usefixtures("there")
def test_other_repositories_are_not_asked(hub: RunningHub, dami: Command, tmp_path: Path) -> None:
    """A manifest that points to a private repository of its reader gives nothing from there."""
    secret = hub.store.create_repo("ann/secret", private=True)
    hub.store.write(secret, "main", "x", {"config.json": hub.store.regular(b"secret")}, None)
    replace_manifest(hub, "acme/fam-l050", rename("", "ann/secret", "repo"))
    dami("pull", "acme/fam-l050", tmp_path / "copy")
    assert hub.sent("ann/secret") == []


@pytest.mark.usefixtures("there")
def test_a_manifest_that_is_too_large_is_not_read(hub: RunningHub, dami: Command, tmp_path: Path) -> None:
    """A manifest over 16 MiB is refused by its announced size."""
    repo = hub.store.repos["acme/fam-l050"]
    head = repo.resolve("main")
    huge = hub.store.regular(b"[" * ((16 << 20) + 1))
    hub.store.write(repo, "main", "huge", {**head.files, MANIFEST: huge}, head.sha)
    failed = dami("pull", "acme/fam-l050", tmp_path / "copy")
    assert (failed.code, "larger than 16 MiB" in failed.err) == (1, True)
    assert not [line for line in hub.faults.log if line == f"GET /acme/fam-l050/resolve/{head.sha}/{MANIFEST}"][2:]


@pytest.mark.usefixtures("there")
def test_a_folder_in_use_is_not_written_over(dami: Command, family: Path, tmp_path: Path) -> None:
    """A folder with other files in a variant's place, or with another family, is refused and left as it is."""
    (tmp_path / "a" / "fam-l050").mkdir(parents=True)
    (tmp_path / "a" / "fam-l050" / "config.json").write_text("mine")
    failed = dami("pull", "acme/fam-l050", tmp_path / "a")
    assert (failed.code, "not from `dami pull`" in failed.err) == (2, True)
    assert (tmp_path / "a" / "fam-l050" / "config.json").read_text() == "mine"
    data = json.loads((family / MANIFEST).read_text())
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / MANIFEST).write_text(json.dumps({**data, "name": "other", "variants": []}))
    failed = dami("pull", "acme/fam-l050", tmp_path / "b")
    assert (failed.code, "holds other, another family" in failed.err) == (2, True)


@pytest.mark.usefixtures("there")
def test_a_damaged_file_is_fetched_again(dami: Command, family: Path, tmp_path: Path) -> None:
    """A pulled file that was damaged since is replaced, alone, and files of others beside it stay."""
    out = tmp_path / "copy"
    dami("pull", "acme/fam-l050", out)
    (out / "fam-l050" / "config.json").write_text("damaged")
    (out / "fam-l050" / "notes.txt").write_text("mine")
    data = json.loads(dami("pull", "acme/fam-l050", out, "--json").out)
    assert data["bytes_fetched"] == (family / "fam-l050" / "config.json").stat().st_size
    assert (out / "fam-l050" / "notes.txt").read_text() == "mine"
    (out / "fam-l050" / "notes.txt").unlink()
    assert same_files(out, family, "fam-l050")


def test_what_is_no_family_is_told(hub: RunningHub, dami: Command, tmp_path: Path) -> None:
    """An unknown repository, one without a manifest, and what is no id each get their own message."""
    hub.store.create_repo("acme/other", private=False)
    for name, code, says in (
        ("acme/none", 1, "no such repository"),
        ("acme/other", 1, "not a family that `dami push` made"),
        ("acme/other-0123456789abcdef01234567", 1, "no such repository"),
        ("just-a-name", 2, "expected an id on the Hub"),
        ("a/../b", 2, "expected an id on the Hub"),
    ):
        failed = dami("pull", name, tmp_path / "copy")
        assert (failed.code, says in failed.err) == (code, True), failed.err
    assert not (tmp_path / "copy").exists()


@pytest.mark.usefixtures("there")
def test_open_family_fetches_the_manifest_alone(hub: RunningHub, family: Path, tmp_path: Path) -> None:
    """open_family gives the whole family from a folder, a repository or a collection, and downloads no weights."""
    log = len(hub.faults.log)
    local = load_family(family)
    assert open_family(family) == open_family(str(family)) == local
    assert open_family("acme/fam-l050") == open_family(slug(hub)) == without_local_paths(local)
    assert not [line for line in hub.faults.log[log:] if "resolve" in line and MANIFEST not in line]
    with pytest.raises(FailureError, match="no such repository"):
        open_family("acme/none")
    with pytest.raises(MisuseError, match="no such file"):
        open_family(str(tmp_path / "nowhere"))
    replace_manifest(hub, "acme/fam-l050", lambda data: data.update(surprise=1))
    with pytest.raises(CheckpointError, match="surprise"):
        open_family("acme/fam-l050")


def test_private_families_need_the_token(
    push: Command, dami: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A private repository is pulled with the owner's token, and does not exist without."""
    push("--private")
    assert dami("pull", "acme/fam-l050", tmp_path / "a").code == 0
    monkeypatch.delenv("HF_TOKEN")
    failed = dami("pull", "acme/fam-l050", tmp_path / "b")
    assert (failed.code, "a private one that this token cannot see" in failed.err) == (1, True)
