"""`dami push` on a good day: what is made, what is compared, what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hub_server.running import READ_TOKEN, RunningHub
from support.hub_state import Command, content, published, remote_manifest

from dami_merge.hub.local_paths import without_local_paths
from dami_router.manifest.family import MANIFEST, load_family

VALIDATION = "POST /api/validate-yaml"


def test_a_family_becomes_repositories_and_a_collection(hub: RunningHub, push: Command, family: Path) -> None:
    """Each variant has a repository with its files, card and manifest, and the collection lists them with notes."""
    done = push("--json")
    assert done.code == 0, done.err
    assert published(hub, family)
    data = json.loads(done.out)
    (slug,) = hub.store.collections
    assert (data["collection"], data["commits"]) == (slug, 6)
    assert [v["state"] for v in data["variants"]] == ["created"] * 3
    notes = [item["note"]["text"] for item in hub.store.collections[slug]["items"]]
    assert notes == ["λ = 0 (the Instruct endpoint)", "λ = 0.5", "λ = 1 (the Thinking endpoint)"]


def test_a_second_push_changes_nothing(hub: RunningHub, push: Command, family: Path) -> None:
    """A family that is up to date gets no commit, no upload, no new repository, and keeps its places."""
    push()
    before, log = load_family(family), len(hub.faults.log)
    done = push("--json")
    data = json.loads(done.out)
    assert (done.code, data["commits"], data["bytes_sent"]) == (0, 0, 0)
    assert [v["state"] for v in data["variants"]] == ["unchanged"] * 3
    assert {line for line in hub.faults.log[log:] if line.split()[0] not in ("GET", "HEAD")} == {VALIDATION}
    assert load_family(family) == before


def test_places_are_found_again_without_the_local_ones(
    hub: RunningHub, push: Command, family: Path, built: Path
) -> None:
    """A fresh build of the same family, which knows no places, takes those that the Hub's manifests name."""
    push()
    first = load_family(family)
    (family / MANIFEST).write_bytes((built / MANIFEST).read_bytes())
    assert json.loads(push("--json").out)["commits"] == 0
    assert load_family(family) == first


def test_only_what_changed_is_sent(hub: RunningHub, push: Command, family: Path) -> None:
    """New scores change cards and manifests, not weights: no upload, and every variant keeps its commit."""
    push()
    before, log = load_family(family), len(hub.faults.log)
    data = json.loads((family / MANIFEST).read_text())
    data["variants"][1]["measured"] = [{"benchmark": "acme/sums#easy", "accuracy": 0.5, "mean_tokens": 9.5, "n": 40}]
    (family / MANIFEST).write_text(json.dumps(data))
    assert push().code == 0
    assert published_places(family) == [v.hub for v in before.variants]
    assert not [line for line in hub.faults.log[log:] if "lfs" in line]
    found = yaml.safe_load(content(hub, "acme/fam-l050", "main", ".eval_results/dami.yaml"))
    assert found == [
        {"dataset": {"id": "acme/sums", "task_id": "easy"}, "value": 50.0,
         "notes": "10 tokens per answer on average, n = 40"}
    ]  # fmt: skip
    assert b"50.0% at 10 tokens" in content(hub, "acme/fam-l000", "main", "README.md")


def published_places(family: Path) -> list[object]:
    """Return where the local manifest says that the variants are."""
    return [v.hub for v in load_family(family).variants]


def test_a_variant_built_anew_replaces_its_files(hub: RunningHub, push: Command, family: Path, lab: Path) -> None:
    """After another build of the family the repository holds the new files, and no weights of the old layout."""
    from support.builds import build
    from support.hub_state import RECIPE

    push()
    old = load_family(family).variants[1].hub
    build(RECIPE.format(lab, "power(2)"), family, max_shard_size=200_000)
    assert push().code == 0
    variant = load_family(family).variants[1]
    files = hub.store.repos["acme/fam-l050"].resolve("main").files
    assert variant.hub != old
    assert "model.safetensors" not in files
    assert {name for name in files if name.endswith(".safetensors")} == {
        name for name in variant.files if name.endswith(".safetensors")
    }
    assert remote_manifest(hub, "acme/fam-l050") == without_local_paths(load_family(family))


def test_files_that_people_added_stay(hub: RunningHub, push: Command, family: Path, lab: Path) -> None:
    """After another build, an adapter and a note that someone put beside the variant are still there."""
    from support.builds import build
    from support.hub_state import RECIPE

    push()
    repo = hub.store.repos["acme/fam-l050"]
    head = repo.resolve("main")
    added = {name: hub.store.regular(name.encode()) for name in ("adapter_model.safetensors", "notes.txt")}
    hub.store.write(repo, "main", "mine", {**head.files, **added}, head.sha)
    build(RECIPE.format(lab, "power(2)"), family)
    assert push().code == 0
    assert set(added) <= set(repo.resolve("main").files)


def test_branches_hold_a_family_in_one_repository(hub: RunningHub, push: Command, family: Path) -> None:
    """With --layout branches there is one repository, a branch a variant, a description on main, no collection."""
    assert push("--layout", "branches").code == 0
    (repo,) = hub.store.repos.values()
    assert (repo.id, sorted(repo.branches)) == ("acme/fam", ["l000", "l050", "l100", "main"])
    assert set(repo.resolve("main").files) == {".gitattributes", "README.md", MANIFEST}
    for variant in load_family(family).variants:
        assert variant.hub is not None
        assert set(variant.files) <= set(repo.resolve(variant.hub.revision).files)
    assert hub.store.collections == {}
    assert json.loads(push("--layout", "branches", "--json").out)["commits"] == 0


def test_a_dry_run_touches_nothing(
    hub: RunningHub, dami: Command, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--dry-run names repositories, files and sizes as a push makes them, only reads, and needs no token."""
    monkeypatch.delenv("HF_TOKEN")
    before = (family / MANIFEST).read_bytes()
    done = dami("push", family, "--namespace", "acme", "--dry-run", "--json")
    data = json.loads(done.out)
    assert (done.code, hub.store.repos, (family / MANIFEST).read_bytes()) == (0, {}, before)
    assert {line for line in hub.faults.log if not line.startswith("GET ")} == {VALIDATION}
    assert "no token for the Hub" in done.err
    assert [t["repo"] for t in data["targets"]] == ["acme/fam-l000", "acme/fam-l050", "acme/fam-l100"]
    assert "a push would stop here: the licence" in done.err
    weights = {f["path"]: f.get("bytes") for f in data["targets"][0]["files"]}
    assert weights["model.safetensors"] == (family / "fam-l000" / "model.safetensors").stat().st_size


def test_a_dry_run_says_what_would_change(hub: RunningHub, push: Command, family: Path) -> None:
    """Repositories that are new, up to date, and to be changed are told apart."""

    def states() -> list[str]:
        return [target["state"] for target in json.loads(push("--dry-run", "--json").out)["targets"]]

    assert states() == ["new"] * 3
    push()
    assert states() == ["unchanged"] * 3
    data = json.loads((family / MANIFEST).read_text())
    data["variants"][1]["measured"] = [{"benchmark": "sums", "accuracy": 0.5, "mean_tokens": 9.5, "n": 40}]
    (family / MANIFEST).write_text(json.dumps(data))
    assert states() == ["changed"] * 3  # every card lists the scores of all


def test_private_means_private(hub: RunningHub, push: Command) -> None:
    """--private makes private repositories and a private collection, and refuses one that is public already."""
    assert push("--private").code == 0
    assert all(repo.private for repo in hub.store.repos.values())
    assert all(collection["private"] for collection in hub.store.collections.values())
    hub.store.repos["acme/fam-l050"].private = False
    done = push("--private")
    assert done.code == 1
    assert "acme/fam-l050: is already public" in done.err


def test_a_collection_can_be_left_out(hub: RunningHub, push: Command) -> None:
    """--no-collection makes repositories alone."""
    assert push("--no-collection").code == 0
    assert (len(hub.store.repos), hub.store.collections) == (3, {})


def test_a_stranger_s_repository_is_left_alone(hub: RunningHub, push: Command) -> None:
    """A repository with other files refuses the push before anything is made."""
    repo = hub.store.create_repo("acme/fam-l100", private=False)
    hub.store.write(repo, "main", "mine", {"notes.txt": hub.store.regular(b"mine")}, None)
    done = push()
    assert done.code == 1
    assert "already holds files that `dami push` did not put there" in done.err
    assert list(hub.store.repos) == ["acme/fam-l100"]
    assert list(repo.resolve("main").files) == ["notes.txt"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "fam-l050" / "config.json").write_text("{}"), "config.json: was changed after the build"),
        (
            lambda f: (f / "fam-l050" / "model.safetensors").unlink(),
            "model.safetensors: is not there; the manifest",
        ),
        (lambda f: drop_variant(f), "not complete: λ = 0.5"),
    ],
    ids=["changed", "gone", "incomplete"],
)
def test_a_family_that_is_not_whole_is_refused(
    hub: RunningHub, push: Command, family: Path, damage: Callable[[Path], object], says: str
) -> None:
    """Damaged or missing files and variants stop a push before the Hub is asked anything."""
    damage(family)
    done = push()
    assert done.code == 1
    assert says in done.err
    assert hub.faults.log == []


def drop_variant(family: Path) -> None:
    """Take λ = 0.5 out of the manifest."""
    data = json.loads((family / MANIFEST).read_text())
    del data["variants"][1]
    (family / MANIFEST).write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (None, "no token for the Hub"),
        ("hf_thisOneIsUnknown", "does not accept the token"),
        (READ_TOKEN, "the token may only read"),
    ],
    ids=["none", "unknown", "read only"],
)
def test_a_push_needs_a_token_that_may_write(
    hub: RunningHub, push: Command, monkeypatch: pytest.MonkeyPatch, token: str | None, says: str
) -> None:
    """Without a good token nothing is made, the message says what to do, and shows no token."""
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    done = push()
    assert done.code == 1
    assert says in done.err
    assert "hf auth login" in done.err
    assert token is None or token not in done.out + done.err
    assert hub.store.repos == {}


def endpoint_on_the_hub(hub: RunningHub, name: str, licence: str) -> dict[str, str]:
    """Put an endpoint's card on the Hub; return what the manifest says of the endpoint."""
    repo = hub.store.create_repo(f"qwen/{name}", private=False)
    card = hub.store.regular(f"---\nlicense: {licence}\n---\n# {name}\n".encode())
    head = hub.store.write(repo, "main", "card", {"README.md": card}, None)
    hub.store.write(repo, "main", "later", {"README.md": hub.store.regular(b"# no metadata\n")}, head.sha)
    return {"source": repo.id, "commit": head.sha}


@pytest.mark.parametrize(("second", "code"), [("apache-2.0", 0), ("mit", 1)])
def test_base_models_and_licence_come_from_the_hub(
    hub: RunningHub, dami: Command, family: Path, second: str, code: int
) -> None:
    """Endpoints on the Hub give the card's base models, and their cards at the merged commits its licence."""
    data = json.loads((family / MANIFEST).read_text())
    data["endpoints"]["instruct"] |= endpoint_on_the_hub(hub, "Tiny-Instruct", "apache-2.0")
    data["endpoints"]["thinking"] |= endpoint_on_the_hub(hub, "Tiny-Thinking", second)
    for side in ("instruct", "thinking"):
        data["recipe"] = re.sub(rf"/\S+/{side}", f"qwen/Tiny-{side.title()}", data["recipe"])
    (family / MANIFEST).write_text(json.dumps(data))
    done = dami("push", family, "--namespace", "acme")
    assert done.code == code, done.err
    if code:
        assert "different licences: apache-2.0 and mit" in done.err
        assert "acme/fam-l050" not in hub.store.repos
        return
    front = content(hub, "acme/fam-l050", "main", "README.md").decode().split("---")[1]
    card = yaml.safe_load(front)
    assert (card["base_model"], card["license"]) == (["qwen/Tiny-Instruct", "qwen/Tiny-Thinking"], "apache-2.0")
    assert "local folder" not in done.err


def test_a_namespace_of_others_is_refused(hub: RunningHub, dami: Command, family: Path) -> None:
    """A namespace that is not the token's, one in another case, and one that is no name, are told apart."""
    done = dami("push", family, "--namespace", "others", "--license", "mit")
    assert (done.code, "one of ann, acme" in done.err) == (1, True)
    done = dami("push", family, "--namespace", "Acme", "--license", "mit")
    assert (done.code, "the Hub spells it acme" in done.err) == (2, True)
    done = dami("push", family, "--namespace", "../x", "--license", "mit")
    assert (done.code, "expected an id on the Hub" in done.err) == (2, True)
