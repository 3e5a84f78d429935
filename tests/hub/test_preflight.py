"""What can fail is found before the first large byte: licences, metadata, names, sizes, rights, storage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import rules
from hub_server.running import FINE_TOKEN, TOKEN, RunningHub
from hub_server.store import User
from support.hub_state import Command, content, published, remote_manifest

from dami_merge.card.card_metadata import eval_results_problems, licence_problem, metadata_problems
from dami_merge.hub.local_paths import without_local_paths
from dami_router.errors import FailureError
from dami_router.manifest.family import MANIFEST, Family, load_family, parse_family
from dami_router.manifest.hub_errors import told

PUSH = ("--namespace", "acme", "--license")


def untouched(hub: RunningHub) -> bool:
    """Whether nothing was made and nothing was sent."""
    return not hub.store.repos and not hub.store.collections and not hub.sent("PUT /lfs/")


def change(family: Path, change: Any) -> None:
    """Change the manifest's data in place."""
    data = json.loads((family / MANIFEST).read_text())
    change(data)
    (family / MANIFEST).write_text(json.dumps(data))


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["push", "dry run"])
@pytest.mark.parametrize(
    ("licence", "near"), [("Apache 2.0", "apache-2.0"), ("MIT", "mit"), ("cc-by-4", "cc-by-4.0"), ("proprietary", None)]
)
def test_a_licence_that_the_hub_lacks_is_refused_at_once(
    hub: RunningHub, dami: Command, family: Path, licence: str, near: str | None, dry: tuple[str, ...]
) -> None:
    """A wrong --license is misuse, with the nearest identifier, in a dry run too; nothing is made."""
    failed = dami("push", family, *PUSH, licence, *dry)
    assert (failed.code, untouched(hub)) == (2, True)
    assert f"{licence!r} is not on the Hub's list" in failed.err
    assert near is None or f"did you mean `{near}`" in failed.err


def test_a_licence_that_is_new_on_the_hub_is_accepted(
    hub: RunningHub, dami: Command, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A licence that our list lacks is the Hub's to judge."""
    monkeypatch.setattr(rules, "LICENCE_IDS", rules.LICENCE_IDS | {"openmdw-9.9"})
    done = dami("push", family, *PUSH, "openmdw-9.9")
    assert done.code == 0, done.err
    assert published(hub, family)


def test_a_server_without_a_check_of_metadata_is_no_obstacle(hub: RunningHub, push: Command, family: Path) -> None:
    """Where HF_ENDPOINT has no such route, the list of licences that we know decides."""
    hub.faults.plan("POST /api/validate-yaml", status=404, times=1)
    failed = push("--license", "Apache 2.0")
    assert (failed.code, "did you mean `apache-2.0`" in failed.err) == (2, True)
    hub.faults.plan("POST /api/validate-yaml", status=404, times=1)
    assert push("--dry-run").code == 0


def test_metadata_that_the_hub_refuses_stops_before_the_upload(hub: RunningHub, push: Command) -> None:
    """What someone wrote into a card on the Hub is checked by the Hub's own route, before anything is sent."""
    push()
    repo = hub.store.repos["acme/fam-l050"]
    text = content(hub, repo.id, "main", "README.md").replace(b"---\nlicense", b"---\nwidget: none\nlicense", 1)
    head = repo.resolve("main")
    hub.store.write(repo, "main", "edit", {**head.files, "README.md": hub.store.regular(text)}, head.sha)
    before = hub.commits
    failed = push()
    assert (failed.code, hub.commits) == (1, before)
    assert 'acme/fam-l050: README.md: the Hub refuses its metadata: "widget" must be an array' in failed.err


@pytest.mark.parametrize(
    ("front", "says"),
    [
        ("license: [", "not valid YAML"),
        ("- license", "key: value"),
        ("tags: [dami]", "`license`"),
        ("license: mit\nbase_model: ./lab", "`base_model`"),
        ("license: mit\nbase_model: [a/b, 3]", "`base_model`"),
        ("license: mit\nbase_model_relation: blend", "`base_model_relation`"),
        ("license: mit\nlicense_link: [x]", "`license_link`"),
        ("license: mit\ntags: dami", "`tags`"),
    ],
)
def test_metadata_is_checked_here_too(front: str, says: str) -> None:
    """Each field that the Hub documents is checked without it."""
    assert says in metadata_problems(front)[0]
    assert metadata_problems("license: mit\nbase_model: [a/b, gpt2]\nbase_model_relation: merge\ntags: [a]") == []


def test_every_documented_licence_is_known() -> None:
    """Common identifiers are on the list, and names of them are not identifiers."""
    assert [licence_problem(name) for name in ("apache-2.0", "mit", "llama3.3", "other", "cc-by-nc-4.0")] == [None] * 5
    assert licence_problem("Apache-2.0") is not None


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("- 3", "`dataset` is missing"),
        ("- {dataset: {id: 'a b', task_id: x}, value: 1}", "`dataset.id`"),
        ("- {dataset: {id: a/b}, value: 1}", "`dataset.task_id`"),
        ("- {dataset: {id: a/b, task_id: x}, value: .nan}", "`value`"),
        ("- {dataset: {id: a/b, task_id: x}, value: true}", "`value`"),
        ("- {dataset: {id: a/b, task_id: x}, value: 1, notes: [x]}", "`notes`"),
    ],
)
def test_scores_are_checked(entry: str, says: str) -> None:
    """A result without what the Hub's format requires is told by its number."""
    good = "- {dataset: {id: a/b, task_id: x/y}, value: 1.5, notes: n}\n"
    assert eval_results_problems(good) == []
    (found,) = eval_results_problems(good + entry)
    assert found.startswith("result 2: ")
    assert says in found
    assert eval_results_problems("{}") == ["expected a list of results"]


def test_a_task_s_id_may_have_a_slash(hub: RunningHub, push: Command, family: Path) -> None:
    """A benchmark such as MathArena/aime_2026#MathArena/aime_2026 becomes a result that the Hub takes."""
    score = {"benchmark": "MathArena/aime#MathArena/aime_2026", "accuracy": 0.5, "mean_tokens": 9.0, "n": 30}
    change(family, lambda data: data["variants"][0].update(measured=[score]))
    assert push().code == 0
    (entry,) = yaml.safe_load(content(hub, "acme/fam-l000", "main", ".eval_results/dami.yaml"))
    assert entry["dataset"] == {"id": "MathArena/aime", "task_id": "MathArena/aime_2026"}


@pytest.mark.parametrize(
    ("name", "says"),
    [("fam.git", "not a name that the Hub accepts"), ("fam--x", "not a name"), ("f" * 97, "the Hub accepts 96")],
)
def test_names_are_checked(hub: RunningHub, push: Command, family: Path, name: str, says: str) -> None:
    """Names that the Hub forbids are misuse before it is asked."""
    change(family, lambda data: data["variants"][1].update(id=name))
    failed = push("--dry-run")
    assert (failed.code, says in failed.err, hub.faults.log) == (2, True, [])


def test_variants_that_differ_in_case_are_refused(hub: RunningHub, push: Command, family: Path) -> None:
    """Two variants whose repositories would be one on the Hub are told by name."""
    change(family, lambda data: data["variants"][1].update(id="FAM-l000"))
    failed = push()
    assert (failed.code, "acme/fam-l000 and acme/FAM-l000 differ only in case" in failed.err) == (2, True)


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["push", "dry run"])
def test_a_file_that_is_too_large_is_refused(
    hub: RunningHub, push: Command, monkeypatch: pytest.MonkeyPatch, dry: tuple[str, ...]
) -> None:
    """The limit of one file is checked here, with the option that makes smaller ones."""
    monkeypatch.setattr("dami_merge.hub.push_plan._MAX_LFS_FILE", 100_000)
    failed = push(*dry)
    assert (failed.code, untouched(hub)) == (1, True)
    assert "model.safetensors has" in failed.err
    assert "without hf-xet" in failed.err
    assert "--max-shard-size" in failed.err


def test_a_file_that_the_hub_refuses_is_not_sent(hub: RunningHub, push: Command) -> None:
    """The Hub is asked about every large file before the first one is sent."""
    hub.hub.max_file = 100_000
    failed = push()
    assert (failed.code, hub.sent("PUT /lfs/"), hub.commits) == (1, [], 0)
    assert "model.safetensors: the Hub refuses it: File is too large" in failed.err


@pytest.mark.parametrize("private", [True, False])
def test_a_full_namespace_is_found_out_before_the_upload(
    hub: RunningHub, push: Command, family: Path, private: bool
) -> None:
    """Storage for less than the family stops the push with one empty repository; its hint is about storage."""
    size = (family / "fam-l000" / "model.safetensors").stat().st_size
    hub.store.quotas["acme", "private" if private else "public"] = 2 * size + 1000
    options = ["--private"] if private else []
    failed = push(*options)
    assert (failed.code, hub.sent("PUT /lfs/"), hub.commits, len(hub.store.repos)) == (1, [], 0, 1)
    assert "the namespace has no storage left for this" in failed.err
    assert "docs/hub/storage-limits" in failed.err
    assert "token" not in failed.err
    hub.store.quotas.clear()
    assert push(*options).code == 0
    assert published(hub, family)


def test_a_full_namespace_stops_an_update_too(hub: RunningHub, push: Command, family: Path, lab: Path) -> None:
    """A rebuilt family that no longer fits changes nothing on the Hub."""
    from support.builds import build
    from support.hub_state import RECIPE

    push()
    before = hub.commits
    build(RECIPE.format(lab, "power(2)"), family)
    stored, size = hub.store.stored("acme", private=False), (family / "fam-l050" / "model.safetensors").stat().st_size
    hub.store.quotas["acme", "public"] = stored + size // 2
    failed = push()
    assert (failed.code, hub.commits, "no storage left" in failed.err) == (1, before, True)


def test_storage_is_asked_for_the_whole_family(hub: RunningHub, push: Command, family: Path) -> None:
    """Where each variant alone would fit into the storage that is left, but not all of them, nothing is sent."""
    for variant in load_family(family).variants:
        hub.store.create_repo(f"acme/{variant.id}", private=False)
    hub.store.quotas["acme", "public"] = 2 * (family / "fam-l050" / "model.safetensors").stat().st_size
    failed = push()
    assert (failed.code, hub.sent("PUT /lfs/"), "no storage left" in failed.err) == (1, [], True)


def test_a_fine_grained_token_is_asked_for_its_rights(
    hub: RunningHub, dami: Command, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not write to acme, which is told before anything is made; to ann it may, with a note on collections."""
    monkeypatch.setenv("HF_TOKEN", FINE_TOKEN)
    failed = dami("push", family, *PUSH, "mit", "--dry-run")
    assert (failed.code, untouched(hub)) == (1, True)
    assert "acme/fam-l000: the fine-grained token may not write there" in failed.err
    done = dami("push", family, "--namespace", "ann", "--license", "mit", "--dry-run")
    assert done.code == 0, done.err
    assert "does not name the right to write collections" in done.err


def test_a_reader_of_an_organisation_cannot_publish_there(hub: RunningHub, push: Command) -> None:
    """A role that only reads is told before anything is made."""
    hub.store.users[TOKEN] = User("ann", ("acme",), role_in_org="read")
    failed = push()
    assert (failed.code, untouched(hub), "acme: ann may only read there" in failed.err) == (1, True, True)


def test_offline_mode_is_called_so(hub: RunningHub, push: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE=1 is no broken connection: a push says so, a dry run goes on without the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    from huggingface_hub.utils import close_session

    close_session()
    try:
        failed = push()
        assert (failed.code, hub.faults.log) == (1, [])
        assert "HF_HUB_OFFLINE=1 is set" in failed.err
        assert "unset HF_HUB_OFFLINE" in failed.err
        done = push("--dry-run")
        assert (done.code, "nothing was compared with the Hub" in done.err) == (0, True)
        wrong = push("--dry-run", "--license", "Apache 2.0")
        assert (wrong.code, "did you mean `apache-2.0`" in wrong.err) == (2, True)
    finally:
        monkeypatch.undo()
        close_session()


def test_a_dry_run_without_a_network_says_so(hub: RunningHub, push: Command) -> None:
    """Where the Hub cannot be reached, the plan is shown all the same, with a warning."""
    hub.faults.plan(".*", cut=0, times=99)
    done = push("--dry-run")
    assert done.code == 0, done.err
    assert "nothing was compared with the Hub" in done.err
    assert "acme/fam-l050" in done.out


def test_a_rate_limit_says_how_long_to_wait(hub: RunningHub, push: Command) -> None:
    """The Hub's RateLimit header gives the number of seconds."""
    hub.hub.limits["api"] = 2
    failed = push()
    assert failed.code == 1
    seconds = int(failed.err.split("wait ")[1].split(" seconds")[0])
    assert 0 < seconds <= rules.WINDOW


def test_a_gated_repository_is_told(hub: RunningHub, push: Command, dami: Command, tmp_path: Path) -> None:
    """Pulling from a gated repository says that access must be asked for, and works once it is granted."""
    push()
    repo = hub.store.repos["acme/fam-l050"]
    repo.gated = True
    failed = dami("pull", repo.id, tmp_path / "copy")
    assert (failed.code, "gated: its owner must grant you access" in failed.err) == (1, True)
    repo.granted.add("ann")
    assert dami("pull", repo.id, tmp_path / "copy").code == 0


@pytest.mark.parametrize(
    ("error", "says", "hint"),
    [
        (OSError(28, "No space left on device"), "No space left", "free space"),
        (PermissionError(13, "Permission denied"), "Permission denied", "owner and mode"),
        (ConnectionResetError(104, "reset"), "connection to the Hub broke", "same command again"),
    ],
)
def test_local_trouble_is_not_the_hub_s(error: OSError, says: str, hint: str) -> None:
    """A full disk, a folder of others and a reset connection each get their own way out."""
    found = told(error, "out")
    assert isinstance(found, FailureError)
    assert says in found.message
    assert hint in str(found.hint)


def test_only_a_transfer_is_resumed() -> None:
    """After a broken connection, a command that reads is run again; one that transfers files also resumes."""
    broken = ConnectionResetError(104, "reset")
    assert told(broken, "a/b").hint == "run the same command again"
    assert told(broken, "a/b", resumes=True).hint == "run the same command again to resume"
    assert told(PermissionError(13, "no"), "out", resumes=True).hint.endswith("again to resume")  # type: ignore[union-attr]


# Paths of this machine


def with_endpoints(family: Path, recipe: str | None = None, **ends: dict[str, Any]) -> Family:
    """Return the family with other endpoints and recipe."""
    data = json.loads((family / MANIFEST).read_text())
    for side, end in ends.items():
        data["recipe"] = data["recipe"].replace(data["endpoints"][side]["source"], end["source"])
        data["endpoints"][side] |= end
    data["recipe"] = recipe or data["recipe"]
    return parse_family(json.dumps(data))


def test_no_path_of_this_machine_is_published(hub: RunningHub, push: Command, family: Path, lab: Path) -> None:
    """Cards, configurations and manifests name local endpoints by their folders' names; the local manifest stays."""
    push()
    for repo in hub.store.repos.values():
        for path, file in repo.resolve("main").files.items():
            assert str(lab).encode() not in hub.store.blobs[file.sha256], path
    assert "base_model: instruct\n" in remote_manifest(hub, "acme/fam-l050").recipe
    assert str(lab) in load_family(family).recipe
    assert b"stand for local folders" in content(hub, "acme/fam-l050", "main", "README.md")


def test_paths_are_published_when_told(hub: RunningHub, push: Command, family: Path) -> None:
    """--publish-paths leaves the recipe as it is written."""
    assert push("--publish-paths").code == 0
    assert remote_manifest(hub, "acme/fam-l050") == load_family(family)


@pytest.mark.parametrize("path", ["/home/ann/models", "~/models", "C:\\models"])
def test_other_paths_in_a_recipe_are_refused(hub: RunningHub, push: Command, family: Path, path: str) -> None:
    """A path that is no endpoint's is told with its line; addresses, ids and relative paths are let through."""
    fine = "# https://huggingface.co/a/b, org/name, model.layers.1/2, ./lab, ../lab\n"
    change(family, lambda data: data.update(recipe=fine + data["recipe"]))
    assert push("--dry-run").code == 0
    change(family, lambda data: data.update(recipe=f"# from {path}\n" + data["recipe"]))
    failed = push("--dry-run")
    assert (failed.code, f"recipe:1: names the local path {path}" in failed.err) == (1, True)
    assert push("--dry-run", "--publish-paths").code == 0


def test_a_snapshot_in_the_cache_is_published_as_its_id(built: Path) -> None:
    """A folder of the Hub's cache becomes `id@commit`, in the endpoints and in the recipe."""
    sha = "ab" * 20
    path = f"/home/x/.cache/huggingface/hub/models--Qwen--Tiny/snapshots/{sha}"
    family = without_local_paths(with_endpoints(built, instruct={"source": path}))
    assert (family.endpoints.instruct.source, family.endpoints.instruct.commit) == (f"Qwen/Tiny@{sha}", sha)
    assert f"base_model: Qwen/Tiny@{sha}\n" in family.recipe


def test_two_folders_of_one_name_are_told_apart(built: Path) -> None:
    """Endpoints in folders of the same name get their side as a suffix."""
    family = with_endpoints(built, instruct={"source": "/a/model"}, thinking={"source": "/b/model/"})
    ends = without_local_paths(family).endpoints
    assert (ends.instruct.source, ends.thinking.source) == ("model-instruct", "model-thinking")


def test_one_local_endpoint_leaves_the_other_s_id(hub: RunningHub, dami: Command, family: Path) -> None:
    """The card names the endpoint that is on the Hub as base model, and push says which one is missing."""
    end = {"source": "Qwen/Tiny", "commit": "ab" * 20}
    (family / MANIFEST).write_text(with_endpoints(family, thinking=end).text())
    done = dami("push", family, *PUSH, "mit")
    assert done.code == 0, done.err
    front = content(hub, "acme/fam-l050", "main", "README.md").decode().split("---")[1]
    assert yaml.safe_load(front)["base_model"] == ["Qwen/Tiny"]
    assert "the cards name only one base model" in done.err
