"""A card on the Hub belongs to its readers: what they write there survives the next push."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hub_server.running import RunningHub
from hypothesis import given
from hypothesis import strategies as st
from support.hub_state import Command, content

from dami_merge.card.card_merge import BEGIN, END, ForeignCardError, frame, merge_card
from dami_merge.card.card_metadata import split_card
from dami_router.manifest.family import MANIFEST

OURS = f"---\nlicense: apache-2.0\ntags:\n- dami\n---\n\n{frame('# Model')}"
LATER = f"---\nlicense: apache-2.0\ntags:\n- dami\n---\n\n{frame('# Model, measured')}"


def merged(theirs: str, ours: str = OURS, *, both_bases: bool = True, own_licence: bool = False) -> str:
    return merge_card(theirs, ours, both_bases=both_bases, own_licence=own_licence).text


def write_card(hub: RunningHub, repo_id: str, text: str, branch: str = "main") -> None:
    """Commit a card, as its owner does on the website."""
    repo = hub.store.repos[repo_id]
    head = repo.resolve(branch)
    files = {**head.files, "README.md": hub.store.regular(text.encode())}
    hub.store.write(repo, branch, "edit", files, head.sha)


def card(hub: RunningHub, repo_id: str = "acme/fam-l050", branch: str = "main") -> str:
    return content(hub, repo_id, branch, "README.md").decode()


def measure(family: Path) -> None:
    """Give a variant a score, which changes every card."""
    data = json.loads((family / MANIFEST).read_text())
    data["variants"][1]["measured"] = [{"benchmark": "sums", "accuracy": 0.75, "mean_tokens": 9.5, "n": 40}]
    (family / MANIFEST).write_text(json.dumps(data))


# Text is without `<`, so that it holds no marker, and without what splits lines in other ways than \n.
TEXT = st.text(st.characters(exclude_characters="<\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", exclude_categories=["Cs"]))


@given(TEXT, TEXT)
def test_text_around_our_part_survives_any_number_of_pushes(before: str, after: str) -> None:
    """What stands before and after our part is there after an update, byte for byte; a repeat changes nothing."""
    front, part = split_card(OURS)
    theirs = f"---\n{front}\n---\n\n{before}{part.strip()}{after}"
    updated = merged(theirs, LATER)
    assert updated == f"---\n{front}\n---\n\n{before}{split_card(LATER)[1].strip()}{after}"
    assert merged(updated, LATER) == updated
    assert merged(theirs) == theirs


def test_metadata_that_someone_set_is_kept() -> None:
    """Keys, order and comments of theirs stay; ours are added, tags are joined."""
    theirs = OURS.replace("license: apache-2.0", "# chosen by Ann\nlanguage: de\nlicense: apache-2.0")
    assert merged(theirs) == theirs
    data = yaml.safe_load(
        split_card(merged(f"---\ntags: [mine]\nlibrary_name: x\n---\n{split_card(OURS)[1]}"))[0] or ""
    )
    assert data == {"tags": ["mine", "dami"], "library_name": "x", "license": "apache-2.0"}


def test_metadata_that_contradicts_the_manifest_is_replaced_and_told() -> None:
    """Other base models than those that were merged are replaced; a further note tells which."""
    ours = OURS.replace("tags:", "base_model:\n- a/I\n- a/T\nbase_model_relation: merge\ntags:")
    theirs = ours.replace("- a/T", "- b/Other").replace("relation: merge", "relation: finetune")
    found = merge_card(theirs, ours, both_bases=True, own_licence=False)
    assert yaml.safe_load(split_card(found.text)[0] or "")["base_model"] == ["a/I", "a/T"]
    assert yaml.safe_load(split_card(found.text)[0] or "")["base_model_relation"] == "merge"
    assert [note.split("`")[1] for note in found.notes] == ["base_model: a/I, b/Other", "base_model_relation: finetune"]
    one = ours.replace("- a/T\n", "")
    assert merged(ours, one, both_bases=False) == ours  # they know the id of what is a folder here


def test_a_licence_on_the_hub_is_kept_unless_the_user_names_one() -> None:
    """Their licence stays, with a note; --license replaces it, with a note."""
    theirs = OURS.replace("apache-2.0", "mit")
    kept = merge_card(theirs, OURS, both_bases=True, own_licence=False)
    assert (kept.text, "`license: mit` on the Hub is kept" in kept.notes[0]) == (theirs, True)
    replaced = merge_card(theirs, OURS, both_bases=True, own_licence=True)
    assert (replaced.text, "replaced by --license apache-2.0" in replaced.notes[0]) == (OURS, True)
    listed = OURS.replace("license: apache-2.0", "license: [apache-2.0]")
    assert merge_card(listed, OURS, both_bases=True, own_licence=False).notes == ()


def test_a_card_with_other_line_ends_is_ours_too() -> None:
    """A card saved with CRLF is not taken for an edited one, and its empty keys are filled."""
    theirs = OURS.replace("\n", "\r\n")
    assert merged(theirs) == theirs
    assert "# Model, measured" in merged(theirs, LATER)
    empty = OURS.replace("license: apache-2.0", "license:")
    assert yaml.safe_load(split_card(merged(empty))[0] or "")["license"] == "apache-2.0"


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        ("# My model\n", "did not write it"),
        ("---\nlicense: mit\n---\n# My model\n", "did not write it"),
        (OURS.replace("# Model", "# My model"), "was edited"),
        (OURS.replace(END, ""), "markers are damaged"),
        (OURS + OURS[OURS.index("<!--") :], "markers are damaged"),
        ("---\na: [\n---\n" + OURS[OURS.index("<!--") :], "not valid YAML"),
        ("---\n- a\n---\n" + OURS[OURS.index("<!--") :], "key: value"),
    ],
)
def test_a_card_of_others_is_not_replaced(theirs: str, says: str) -> None:
    """No part of ours, an edited one, damaged markers and unreadable metadata each refuse."""
    with pytest.raises(ForeignCardError, match=says):
        merged(theirs)


def test_overwriting_replaces_no_more_than_it_must() -> None:
    """An edited part is replaced while the text around it stays; a card without a part is replaced, with a note."""
    edited = OURS.replace("# Model", "# My model") + "\nMine.\n"
    found = merge_card(edited, OURS, both_bases=True, own_licence=False, overwrite=True)
    assert (found.text, found.notes) == (OURS + "\nMine.\n", ())
    found = merge_card("# My model\n", OURS, both_bases=True, own_licence=False, overwrite=True)
    assert (found.text, found.notes) == (OURS, ("replaced, though `dami push` did not write it",))


def test_our_part_goes_where_its_owner_wants_it() -> None:
    """Empty markers in a hand-written card are filled; a card of metadata alone gets the part."""
    assert merged(f"# Mine\n\n{BEGIN}\n{END}\n\nMore.\n").endswith(f"# Mine\n\n{frame('# Model')}\nMore.\n")
    assert merged("---\nlicense: apache-2.0\ntags:\n- dami\n---\n") == OURS


EVIL = f"# A\n{END}\n<!-- dami:begin -->"


def test_a_recipe_cannot_end_our_part() -> None:
    """A marker inside our own text is defused, so that the next push finds its part."""
    ours = f"---\nlicense: mit\n---\n\n{frame(EVIL)}"
    later = f"---\nlicense: mit\n---\n\n{frame('# B')}"
    assert merged(ours, later) == later


# Pushes


def test_a_second_push_keeps_what_was_written_on_the_hub(hub: RunningHub, push: Command, family: Path) -> None:
    """An edited card keeps its text and metadata while our part of it gets the new scores."""
    push()
    text = card(hub).replace("license:", "language: de\nlicense:", 1) + "\n## Notes\n\nGood at sums.\n"
    write_card(hub, "acme/fam-l050", text)
    measure(family)
    done = push()
    assert done.code == 0, done.err
    assert card(hub).endswith("\n## Notes\n\nGood at sums.\n")
    assert "75.0% at 10 tokens" in card(hub)
    assert yaml.safe_load(split_card(card(hub))[0] or "")["language"] == "de"
    before = hub.commits
    assert push().code == 0
    assert hub.commits == before


@pytest.mark.parametrize("layout", ["repos", "branches"])
def test_an_edit_inside_our_part_stops_the_push(hub: RunningHub, push: Command, family: Path, layout: str) -> None:
    """Nothing is sent and the edit stays, until --overwrite-card says otherwise."""
    repo, branch = ("acme/fam-l050", "main") if layout == "repos" else ("acme/fam", "l050")
    push("--layout", layout)
    write_card(hub, repo, card(hub, repo, branch).replace("# fam-l050", "# The fam-l050"), branch)
    measure(family)
    before = hub.commits
    for more in ([], ["--dry-run"]):
        failed = push("--layout", layout, *more)
        assert (failed.code, hub.commits) == (1, before)
        assert f"{repo if layout == 'repos' else 'acme/fam@l050'}: README.md: the part" in failed.err
    other = card(hub, *(("acme/fam-l100",) if layout == "repos" else ("acme/fam", "l100"))) + "\nKeep me.\n"
    write_card(
        hub, "acme/fam-l100" if layout == "repos" else "acme/fam", other, "main" if layout == "repos" else "l100"
    )
    assert push("--layout", layout, "--overwrite-card").code == 0
    assert "# The fam-l050" not in card(hub, repo, branch)
    kept = card(hub, "acme/fam-l100") if layout == "repos" else card(hub, "acme/fam", "l100")
    assert kept.endswith("\nKeep me.\n")


def test_a_hand_written_card_is_not_replaced(hub: RunningHub, push: Command) -> None:
    """A repository with only a README of its own refuses the first push, and the error names both ways out."""
    hub.store.create_repo("acme/fam-l050", private=False)
    write_card(hub, "acme/fam-l050", "# Reserved for Ann\n")
    failed = push()
    assert (failed.code, list(hub.store.repos), hub.commits) == (1, ["acme/fam-l050"], 0)
    assert "did not write it; refusing to overwrite" in failed.err
    assert "--overwrite-card" in failed.err
    write_card(hub, "acme/fam-l050", f"# Reserved for Ann\n\n{BEGIN}\n{END}\n")
    assert push().code == 0
    assert "# Reserved for Ann\n" in card(hub)
    assert "# fam-l050" in card(hub)


def test_metadata_on_the_hub_is_told_when_it_is_overruled(hub: RunningHub, push: Command) -> None:
    """--license beats the licence on the Hub, and the push says so."""
    push()
    write_card(hub, "acme/fam-l050", card(hub).replace("apache-2.0", "mit"))
    done = push("--json")
    assert json.loads(done.out)["notes"] == [
        "acme/fam-l050: README.md: `license: mit` on the Hub is replaced by --license apache-2.0"
    ]
    assert "license: apache-2.0" in card(hub)


@pytest.mark.parametrize("cut", [False, True], ids=["new", "cut before its commit"])
def test_a_new_branch_does_not_inherit_text_about_the_family(hub: RunningHub, push: Command, cut: bool) -> None:
    """A branch starts as a copy of main: text of main's card stays there alone, also after a push that was cut."""
    push("--layout", "branches")
    write_card(hub, "acme/fam", card(hub, "acme/fam") + "\nAbout the whole family.\n")
    branches = hub.store.repos["acme/fam"].branches
    del branches["l050"]
    if cut:
        branches["l050"] = branches["main"]
    assert push("--layout", "branches").code == 0
    assert "About the whole family" in card(hub, "acme/fam")
    assert "About the whole family" not in card(hub, "acme/fam", "l050")
    assert "# fam-l050" in card(hub, "acme/fam", "l050")
