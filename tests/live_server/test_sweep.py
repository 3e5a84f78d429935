"""`dami sweep` on the lab pair: through a running server, and through one that it starts itself."""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes.world import Client

from dami_merge.lab import draw_queries
from dami_merge.recipes.recipe import load_recipe
from dami_merge.sweep import sweep_server
from dami_router.cli import main
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.records import read_rollouts


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def facts(self) -> dict[str, Any]:
        return dict(json.loads(self.out))


def sweep(pair: tuple[str, str], dataset: Path, out: Path, *more: object) -> Ended:
    """Run the command in this process."""
    said, told = io.StringIO(), io.StringIO()
    arguments = ["sweep", *pair, "--dataset", dataset, "--out", out, "--max-tokens", 160, "--grade", "exact", "--json"]
    with redirect_stdout(said), redirect_stderr(told), pytest.raises(SystemExit) as stopped:
        main([str(x) for x in [*arguments, *more]])
    return Ended(int(stopped.value.code or 0), said.getvalue(), told.getvalue())


def questions(path: Path, count: int) -> Path:
    rows = [{"id": q.id, "question": q.text, "answer": q.expected} for q in draw_queries("dev", count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_from_a_running_server_to_rollouts_and_a_recipe(server: Client, pair: tuple[str, str], tmp_path: Path) -> None:
    """λ are added where the curve bends; what is written can be trained on and built; a second run asks nothing."""
    dataset, out = questions(tmp_path / "q.jsonl", 24), tmp_path / "sweep"
    done = sweep(pair, dataset, out, "--url", server.url, "--most", 6)
    assert done.code == 0, done.err
    facts = done.facts
    assert len(facts["lambdas"]) <= 6
    assert facts["questions"] == 24
    assert facts["stopped"] == "all 24 questions were asked"
    assert set(facts["frontier"]) <= set(facts["lambdas"])
    grid = grid_of(read_rollouts(out / "rollouts.jsonl"))
    assert (list(grid.lambdas), len(grid.queries)) == (facts["lambdas"], 24)
    assert grid.capped is not None
    assert [cap for _, cap in grid.capped.settings] == facts["caps"]
    recipe = load_recipe(out / "recipe.yml")
    assert recipe.family is not None
    assert list(recipe.family.lambdas) == facts["frontier"]
    assert "λ=1, cap" in (out / "report" / "report.html").read_text()
    before = (out / "answers.jsonl").read_bytes()
    again = sweep(pair, dataset, out, "--url", server.url, "--most", 6)
    assert (again.code, again.facts["lambdas"]) == (0, facts["lambdas"])
    assert (out / "answers.jsonl").read_bytes() == before
    other = sweep(pair, dataset, out, "--url", server.url, "--dtype", "float16")
    assert (other.code, "was started with another pair" in other.err) == (2, True), other.err
    assert facts["tokens"] == sum(row.tokens for row in read_rollouts(out / "answers.jsonl"))


def test_it_stops_at_the_precision_or_at_the_tokens(server: Client, pair: tuple[str, str], tmp_path: Path) -> None:
    """A wide precision ends after the first round; a limit of tokens is never passed by more than it was told."""
    dataset = questions(tmp_path / "q.jsonl", 120)
    common = ("--url", server.url, "--caps", "none", "--lambdas", "0,0.6", "--most", 2)
    done = sweep(pair, dataset, tmp_path / "wide", *common, "--precision", 40)
    assert (done.code, done.facts["questions"]) == (0, 50)
    assert done.facts["stopped"] == "intervals are within ±40 points"
    spent = done.facts["tokens"]
    limited = sweep(pair, dataset, tmp_path / "dear", *common, "--max-tokens-total", int(1.5 * spent))
    assert (limited.code, limited.facts["questions"]) == (0, 50)
    assert "the next step needs about" in limited.facts["stopped"]
    assert limited.facts["tokens"] <= 1.5 * spent


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--lambdas", "0"], 2, "at least two different values"),
        (["--lambdas", "0,2"], 2, "at least two different values"),
        (["--caps", "x"], 2, "expected whole numbers"),
        (["--path", "sideways"], 2, "path"),
        (["--url", "http://127.0.0.1:9"], 1, "no live server answers"),
        (["--answer-column", "nothing"], 2, "no column"),
    ],
)
def test_mistakes_are_one_message(
    pair: tuple[str, str], tmp_path: Path, options: list[str], code: int, says: str
) -> None:
    """A plan, a server or a dataset that cannot be used is said before anything is asked."""
    dataset = questions(tmp_path / "q.jsonl", 5)
    done = sweep(pair, dataset, tmp_path / "sweep", *options)
    assert (done.code, says in done.err) == (code, True), done.err
    assert not (tmp_path / "sweep" / "rollouts.jsonl").exists()


def test_another_pair_behind_the_address_is_refused(server: Client, pair: tuple[str, str], tmp_path: Path) -> None:
    """Answers of one pair never become the recipe of another."""
    dataset = questions(tmp_path / "q.jsonl", 5)
    done = sweep((pair[1], pair[0]), dataset, tmp_path / "sweep", "--url", server.url)
    assert (done.code, "its instruct endpoint is" in done.err) == (2, True), done.err
    assert "router.yml" not in done.err
    assert not (tmp_path / "sweep" / "rollouts.jsonl").exists()


@pytest.mark.slow
def test_it_starts_and_stops_dami_live_itself(pair: tuple[str, str], tmp_path: Path) -> None:
    """Without --url, a server of its own answers and is gone afterwards."""
    dataset = questions(tmp_path / "q.jsonl", 8)
    done = sweep(
        pair, dataset, tmp_path / "sweep", "--dtype", "float32", "--lambdas", "0,1", "--most", 2, "--caps", "4"
    )
    assert done.code == 0, done.err
    assert done.facts["caps"] == [4]
    assert "dtype: float32" in (tmp_path / "sweep" / "recipe.yml").read_text()
    assert "alive" in (tmp_path / "sweep" / "live.log").read_text()


def test_a_server_of_its_own_that_cannot_start_is_said_with_its_words(pair: tuple[str, str], tmp_path: Path) -> None:
    """Without --url, `dami live` is started with the sweep's endpoints and settings; its own error is shown."""
    dataset = questions(tmp_path / "q.jsonl", 8)
    broken = sweep((pair[0], str(tmp_path)), dataset, tmp_path / "broken", "--dtype", "float32")
    assert (broken.code, "dami live did not start" in broken.err) == (1, True)


def test_the_server_s_address_is_read_and_its_process_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address comes as a JSON object of several lines. A script stands for `dami live`, which takes seconds."""
    script = "import os, sys, time; print('{'); print('\"address\": \"http://x:%d\"}' % os.getpid(), flush=True); "
    monkeypatch.setattr(
        sweep_server, "_START", script + "print(sys.argv[1:], file=sys.stderr, flush=True); time.sleep(60)"
    )
    with sweep_server.live_server(["a", "b"], tmp_path / "live.log") as address:
        process = int(address.rsplit(":", 1)[1])
        os.kill(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
