"""A family that shrinks, grows or gets another name, and the collections that list it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hub_server.running import RunningHub
from support.builds import build
from support.hub_state import RECIPE, Command, remote_manifest

from dami_merge.hub.push_plan import collection_title
from dami_router.errors import CheckpointError
from dami_router.manifest.family import MANIFEST, load_family
from dami_router.manifest.published import open_family


def rebuild(lab: Path, family: Path, lambdas: str, name: str = "fam") -> None:
    """Build the family again from a changed recipe; of another name, in an empty folder."""
    if load_family(family).name != name:
        shutil.rmtree(family)
    text = RECIPE.format(lab, "uniform").replace("[0, 0.5, 1]", lambdas).replace("name: fam", f"name: {name}")
    build(text, family)


def items(hub: RunningHub, title: str = "fam") -> list[str]:
    """Return what a collection lists."""
    (found,) = [c for c in hub.store.collections.values() if c["title"] == title]
    return [item["id"] for item in found["items"]]


def slug(hub: RunningHub, title: str = "fam") -> str:
    (found,) = [slug for slug, c in hub.store.collections.items() if c["title"] == title]
    return found


def names(place: str) -> list[str]:
    return [variant.id for variant in open_family(place).variants]


def test_a_shrunk_family_leaves_the_collection_and_stays_on_the_hub(
    hub: RunningHub, push: Command, dami: Command, family: Path, lab: Path, tmp_path: Path
) -> None:
    """The collection follows the manifest, the old repository stays and is named, and the printed pull works."""
    push()
    rebuild(lab, family, "[0.5, 1]")
    done = push("--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["departed"] == ["acme/fam-l000"]
    assert items(hub) == ["acme/fam-l050", "acme/fam-l100"]
    assert "acme/fam-l000" in hub.store.repos
    assert names(slug(hub)) == ["fam-l050", "fam-l100"]
    assert dami("pull", slug(hub), tmp_path / "copy").code == 0
    assert push("--dry-run").code == 0
    told = push()
    assert "acme/fam-l000" not in told.err


def test_a_grown_family_is_listed_in_order(hub: RunningHub, push: Command, family: Path, lab: Path) -> None:
    """A new variant gets its place between the others, and other families that people added stay."""
    push()
    other = hub.store.create_repo("acme/other", private=False)
    manifest = (family / MANIFEST).read_text().replace('"name": "fam"', '"name": "other"')
    hub.store.write(other, "main", "x", {MANIFEST: hub.store.regular(manifest.encode())}, None)
    collection = hub.store.collections[slug(hub)]
    collection["items"].insert(1, {"_id": "f" * 24, "id": other.id, "type": "model", "position": 1})
    rebuild(lab, family, "[0, 0.25, 0.5, 1]")
    assert push().code == 0
    assert [item for item in items(hub) if item != other.id] == [
        "acme/fam-l000", "acme/fam-l025", "acme/fam-l050", "acme/fam-l100"
    ]  # fmt: skip
    assert other.id in items(hub)


def test_a_renamed_family_is_a_new_one(hub: RunningHub, push: Command, family: Path, lab: Path) -> None:
    """Under another name there are new repositories and a new collection; those of the old name stay as they were."""
    push()
    before = {repo: dict(hub.store.repos[repo].branches) for repo in hub.store.repos}
    rebuild(lab, family, "[0, 0.5, 1]", name="sums")
    done = push()
    assert done.code == 0, done.err
    assert items(hub) == ["acme/fam-l000", "acme/fam-l050", "acme/fam-l100"]
    assert items(hub, "sums") == ["acme/sums-l000", "acme/sums-l050", "acme/sums-l100"]
    assert {repo: hub.store.repos[repo].branches for repo in before} == before


def test_places_of_an_old_name_are_named(hub: RunningHub, push: Command, family: Path) -> None:
    """A manifest that still knows the old places makes push say that those repositories stay."""
    push()
    text = (family / MANIFEST).read_text().replace("name: fam", "name: sums")
    data = json.loads(text) | {"name": "sums"}
    for variant in data["variants"]:
        variant["id"] = variant["id"].replace("fam-", "sums-")
    (family / MANIFEST).write_text(json.dumps(data))
    done = push()
    assert done.code == 0, done.err
    assert "acme/fam-l050 is no longer part of the family; it stays" in done.err


def test_a_branch_of_an_earlier_variant_stays_and_is_named(
    hub: RunningHub, push: Command, dami: Command, family: Path, lab: Path, tmp_path: Path
) -> None:
    """With branches, a shrunk family is what main's manifest says; the old branch stays and is named."""
    push("--layout", "branches")
    rebuild(lab, family, "[0.5, 1]")
    done = push("--layout", "branches", "--json")
    assert json.loads(done.out)["departed"] == ["acme/fam@l000"]
    assert "l000" in hub.store.repos["acme/fam"].branches
    assert names("acme/fam") == ["fam-l050", "fam-l100"]
    assert dami("pull", "acme/fam", tmp_path / "copy").code == 0
    assert [v.id for v in load_family(tmp_path / "copy").variants] == ["fam-l050", "fam-l100"]


@pytest.mark.parametrize(("lambdas", "newest"), [("[0.5, 1]", True), ("[0, 0.25, 0.5, 1]", False)])
def test_a_cut_push_leaves_a_collection_that_gives_a_whole_family_or_says_why_not(
    hub: RunningHub, push: Command, dami: Command, family: Path, lab: Path, tmp_path: Path, lambdas: str, newest: bool
) -> None:
    """Cut before the collection: the shrunk family is complete there; of the grown one the missing variant is named."""
    push()
    rebuild(lab, family, lambdas)
    hub.faults.plan("(POST|DELETE|PATCH) /api/collections/", status=500, times=99)
    assert push().code == 1
    hub.faults.planned.clear()
    done = dami("pull", slug(hub), tmp_path / "copy")
    if newest:
        assert names(slug(hub)) == ["fam-l050", "fam-l100"]
        assert done.code == 0, done.err
    else:
        assert (done.code, "3 of its 4 variants" in done.err, "acme/fam-l025" in done.err) == (1, True, True)
        with pytest.raises(CheckpointError, match="acme/fam-l025"):
            open_family(slug(hub))
        assert push().code == 0
        assert len(names(slug(hub))) == 4


def test_the_newest_of_two_whole_families_is_chosen(
    hub: RunningHub, push: Command, dami: Command, family: Path, lab: Path, tmp_path: Path
) -> None:
    """Of a collection with two families, both complete, the one that was published last is loaded and pulled."""
    push()
    rebuild(lab, family, "[0, 1]", name="sums")
    push()
    both = hub.store.collections[slug(hub)]
    both["items"] = [*hub.store.collections[slug(hub, "sums")]["items"], *both["items"]]
    assert names(slug(hub)) == ["sums-l000", "sums-l100"]
    done = dami("pull", slug(hub), tmp_path / "copy", "--json")
    assert json.loads(done.out)["fetched"] == ["sums-l000", "sums-l100"]
    both["items"] = both["items"][1:]  # the newer one is incomplete now
    assert names(slug(hub)) == ["fam-l000", "fam-l050", "fam-l100"]


def test_long_names_have_collections_of_their_own(hub: RunningHub, push: Command, family: Path, lab: Path) -> None:
    """Two families alike in their first 60 characters get two collections, with titles that the Hub accepts."""
    for last in ("a", "b"):
        rebuild(lab, family, "[0, 1]", name="f" * 61 + last)
        assert push().code == 0
    titles = {collection["title"] for collection in hub.store.collections.values()}
    assert titles == {collection_title("f" * 61 + last) for last in ("a", "b")}
    assert all(len(title) <= 60 for title in titles)
    assert [len(collection["items"]) for collection in hub.store.collections.values()] == [2, 2]


def test_a_collection_is_found_under_another_title_and_on_any_page(hub: RunningHub, push: Command) -> None:
    """A title that someone changed makes no second collection, however many collections the owner has."""
    push()
    collection = hub.store.collections.pop(slug(hub))
    collection |= {"title": "Think as much as you like", "slug": f"acme/think-{'0' * 24}"}
    hub.store.collections[collection["slug"]] = collection
    for number in range(4):
        hub.store.new_collection("acme", f"other {number}", None, False)
    hub.store.collections = dict(reversed(hub.store.collections.items()))
    hub.hub.collections.page = 2
    assert push().code == 0
    assert len(hub.store.collections) == 5


@pytest.mark.parametrize("how", ["option", "settings"])
def test_private_repositories_are_never_listed_in_public(hub: RunningHub, push: Command, how: str) -> None:
    """A public collection refuses a private family before anything is made; a new collection of one is private."""
    if how == "option":
        hub.store.new_collection("acme", "fam", None, False)
        failed = push("--private")
        assert (failed.code, hub.store.repos) == (1, {})
    else:
        push()
        hub.store.repos["acme/fam-l050"].private = True
        failed = push()
        assert failed.code == 1
    assert "is public, and would list private repositories" in failed.err
    hub.store.collections.clear()
    assert push(*(["--private"] if how == "option" else [])).code == 0
    assert [c["private"] for c in hub.store.collections.values()] == [True]


def test_a_repository_that_was_renamed_on_the_hub(
    hub: RunningHub, push: Command, dami: Command, tmp_path: Path, family: Path
) -> None:
    """It is pulled by both names; push refuses to write into it under the old one and names the new one."""
    push()
    hub.store.rename("acme/fam-l050", "acme/half")
    for number, name in enumerate(("acme/half", "acme/fam-l050", slug(hub))):
        done = dami("pull", name, tmp_path / str(number))
        assert done.code == 0, done.err
        assert "fam-l050" in [v.id for v in load_family(tmp_path / str(number)).variants]
    failed = push()
    assert (failed.code, "acme/fam-l050: was renamed to acme/half on the Hub" in failed.err) == (1, True)


def test_names_that_differ_in_case_are_one_repository(hub: RunningHub, push: Command) -> None:
    """A repository spelled otherwise is not written to as if it were another."""
    hub.store.create_repo("acme/FAM-l050", private=False)
    failed = push()
    assert (failed.code, "the Hub has it as acme/FAM-l050" in failed.err) == (1, True)
    assert list(hub.store.repos) == ["acme/FAM-l050"]


def test_another_family_of_the_same_name_is_refused(hub: RunningHub, push: Command, family: Path) -> None:
    """Endpoints of another size or architecture are no new build of the family: its weights are not replaced."""
    push()
    before = remote_manifest(hub, "acme/fam-l050")
    data: dict[str, Any] = json.loads((family / MANIFEST).read_text())
    for side in ("instruct", "thinking"):
        data["endpoints"][side]["parameters"] += 1
    (family / MANIFEST).write_text(json.dumps(data))
    failed = push()
    assert (failed.code, "another family of this name" in failed.err) == (1, True)
    assert remote_manifest(hub, "acme/fam-l050") == before
