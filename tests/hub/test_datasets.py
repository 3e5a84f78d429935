"""Datasets on the Hub: which files a split is in, as cards, names and the Hub's own conversion say."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.world import World, router_yml
from hub_server.running import RunningHub
from support.hub_state import Answer

from dami_router.datasets import load_dataset
from dami_router.errors import FailureError, MisuseError
from dami_router.rollouts.records import read_rollouts

CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
- config_name: hard
  data_files: hard/**/*.jsonl
---
# Sums
"""


def rows(*texts: str) -> bytes:
    return "".join(json.dumps({"question": t, "answer": f"#### {len(t)}"}) + "\n" for t in texts).encode()


def table(*texts: str) -> bytes:
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet needs pyarrow")
    pyarrow = pytest.importorskip("pyarrow")
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([json.loads(x) for x in rows(*texts).splitlines()]), out)
    return out.getvalue()


def texts(place: str, **options: Any) -> list[str]:
    return [question.text for question in load_dataset(place, **options).questions]


@pytest.fixture(autouse=True)
def _local(dami: Callable[..., Answer]) -> None:
    """Point huggingface_hub to the local Hub."""


def test_a_card_names_the_files_of_each_config_and_split(hub: RunningHub) -> None:
    """Parquet shards come in order; a config of one split needs no --split; what must be chosen is asked for."""
    shards = {f"main/test-0000{i}-of-00002.parquet": table(f"test {i}") for i in (1, 0)}
    other = {"main/train-00000-of-00001.parquet": table("train"), "hard/a/b/x.jsonl": rows("hard"), "hard.csv": b"x"}
    hub.store.put_dataset("acme/sums", {"README.md": CARD.encode(), **shards, **other})
    assert texts("acme/sums", config="main", split="test") == ["test 0", "test 1"]
    assert texts("acme/sums", config="hard") == ["hard"]
    assert load_dataset("acme/sums", config="hard").questions[0].where == "acme/sums/hard/a/b/x.jsonl:1"
    for options, says in (
        ({}, "has hard or main; one must be chosen"),
        ({"config": "main"}, "has test or train; one must be chosen"),
        ({"config": "man"}, "did you mean `main`"),
        ({"config": "main", "split": "dev"}, "it has test or train"),
    ):
        with pytest.raises(MisuseError) as caught:
            load_dataset("acme/sums", **options)
        assert says in str(caught.value)


def test_without_a_card_names_decide(hub: RunningHub) -> None:
    """Splits are read off paths, `dev` is validation, and a single file without a split is the one there is."""
    files = {"main/test.jsonl": rows("t"), "main/dev-0.jsonl": rows("v"), "latest/test.jsonl": rows("latest")}
    hub.store.put_dataset("acme/named", files)
    assert texts("acme/named", config="main", split="validation") == ["v"]
    assert texts("acme/named", split="test") == ["latest", "t"]
    hub.store.put_dataset("acme/one", {"aime.jsonl": rows("a")})
    assert texts("acme/one") == ["a"]


def test_the_hub_s_own_parquet_is_the_last_resort(hub: RunningHub) -> None:
    """A dataset of other files (a script, archives) is read as the Hub converted it; no script is run."""
    hub.store.put_dataset("acme/script", {"script.py": b"raise SystemExit", "x.zip": b"PK"})
    with pytest.raises(FailureError, match="the dataset acme/script"):
        load_dataset("acme/script")
    converted = {"default/test/0000.parquet": table("c")}
    hub.store.put_dataset("acme/script", converted, branch="refs/convert/parquet")
    assert texts("acme/script", split="test") == ["c"]


def test_a_revision_is_kept_to(hub: RunningHub) -> None:
    """`ORG/name@revision` reads that state."""
    hub.store.put_dataset("acme/moving", {"test.jsonl": rows("old")}, branch="v1")
    hub.store.put_dataset("acme/moving", {"test.jsonl": rows("new")})
    assert texts("acme/moving@v1") == ["old"]
    assert texts("acme/moving") == ["new"]


def test_what_is_not_there_is_one_message(hub: RunningHub) -> None:
    """An unknown dataset and one without a readable file say so."""
    with pytest.raises(FailureError, match="acme/none: no such repository"):
        load_dataset("acme/none")
    hub.store.put_dataset("acme/empty", {"README.md": b"# x"})
    hub.store.put_dataset("acme/empty", {}, branch="refs/convert/parquet")
    with pytest.raises(FailureError, match="has no readable file"):
        load_dataset("acme/empty")
    with pytest.raises(MisuseError, match="expected an id on the Hub"):
        load_dataset("not an id")


@pytest.fixture
def world() -> Iterator[World]:
    """Servers that end with the test."""
    with World.alone() as made:
        yield made


def test_rollouts_of_a_hub_dataset(hub: RunningHub, world: World, dami: Callable[..., Answer], tmp_path: Path) -> None:
    """`dami rollout --dataset ORG/name --config … --split …` asks that split's questions and grades by its answers."""
    questions = {"main/test-00000-of-00001.parquet": table("1234", "123"), "main/train-0.parquet": table("no")}
    hub.store.put_dataset("acme/sums", {"README.md": CARD.encode(), **questions})
    (tmp_path / "router.yml").write_text(router_yml(("v-l000", world.upstream("v-l000"))))
    place = ("--dataset", "acme/sums", "--config", "main", "--split", "test")
    done = dami("rollout", tmp_path / "router.yml", *place, "--out", tmp_path / "r.jsonl", "--json")
    assert done.code == 0, done.err
    rows = {row.query: (row.expected, row.answer, row.correct) for row in read_rollouts(tmp_path / "r.jsonl")}
    assert rows == {"1234": ("4", "4", 1.0), "123": ("3", "4", 0.0)}


def test_a_card_of_nonsense_is_read_past(hub: RunningHub) -> None:
    """Values of other types than a card should have do no harm; files are then found by name."""
    card = "---\nconfigs: [1, {config_name: [x]}, {data_files: {a: 1}}, {data_files: [{split: 3, path: 7}]}]\n---\n"
    hub.store.put_dataset("acme/odd", {"README.md": card.encode(), "test.jsonl": rows("t")})
    assert texts("acme/odd") == ["t"]
