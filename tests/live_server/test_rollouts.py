"""`dami rollout` on the lab pair behind a live server: real answers over HTTP, then an estimator from them."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from fakes.world import Client

from dami_merge.lab import draw_queries
from dami_merge.lab.task import grade
from dami_router.cli import main
from dami_router.rollouts.records import read_rollouts

COUNT = 24


def run(*arguments: object) -> dict[str, Any]:
    """Run a command in this process, and return what it says under --json."""
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments), "--json"])
    assert not stopped.value.code
    return dict(json.loads(out.getvalue()))


def write_config(path: Path, server: Client, pair: tuple[str, str]) -> Path:
    ends = f'instruct: "{pair[0]}", thinking: "{pair[1]}"'
    path.write_text(f'backends: [{{url: "{server.url}", protocol: live, {ends}}}]\n')
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Queries of the lab's dev split."""
    rows = [{"id": q.id, "question": q.text, "answer": q.expected} for q in draw_queries("dev", COUNT)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "q.jsonl"


def test_from_a_live_pair_to_an_estimator(server: Client, pair: tuple[str, str], dataset: Path, tmp_path: Path) -> None:
    """rollout → train → eval: each λ is asked and graded as the lab grades, and an estimator learns from it."""
    config, out = write_config(tmp_path / "router.yml", server, pair), tmp_path / "r.jsonl"
    common = ("rollout", config, "--dataset", dataset, "--out", out, "--max-tokens", 160, "--grade", "exact")
    said = run(*common, "--lambdas", "0,0.5", "--keep-thoughts")
    assert [(x["lambda"], x["model"], x["n"]) for x in said["lambdas"]] == [
        (0, "dami:0", COUNT),
        (0.5, "dami:0.5", COUNT),
    ]
    said = run(*common, "--lambdas", "0,0.5,1", "--keep-thoughts")
    assert (said["written"], said["left"]) == (COUNT, 0)
    rows = list(read_rollouts(out))
    assert len(rows) == 3 * COUNT
    for row in rows:
        finished = row.finish_reason == "stop"
        assert row.correct == grade(row.answer or "", row.expected or "", finished=finished), row
    instruct, _, thinking = said["lambdas"]
    assert thinking["mean_tokens"] > 8 * instruct["mean_tokens"]
    assert thinking["think_share"] == 1.0
    assert run("train", out, "--out", tmp_path / "est")["queries"] == COUNT
    found = run("eval", out, "--folds", 4)
    assert found["queries"] == COUNT
    assert found["mean_tokens"] <= thinking["mean_tokens"]


def test_another_pair_is_not_mixed_in(server: Client, pair: tuple[str, str], dataset: Path, tmp_path: Path) -> None:
    """Live answers are told apart by λ alone, so the pair behind them is kept with the settings and compared."""
    config, out = write_config(tmp_path / "router.yml", server, pair), tmp_path / "r.jsonl"
    command = ["rollout", config, "--dataset", dataset, "--out", out, "--lambdas", "0", "--limit", 2]
    run(*command)
    kept = tmp_path / "r.jsonl.run.json"
    settings = json.loads(kept.read_text())
    assert settings["settings"]["pair"].startswith("instruct@")
    settings["settings"]["pair"] = "other@1 → other@2"
    kept.write_text(json.dumps(settings))
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, command)])
    assert stopped.value.code == 2


def test_thinking_with_a_cap_is_run_beside_the_variants(
    server: Client, pair: tuple[str, str], dataset: Path, tmp_path: Path
) -> None:
    """--caps adds capped answers at the largest λ, cheaper than without, as rows of their own; a rerun adds none."""
    config, out = write_config(tmp_path / "router.yml", server, pair), tmp_path / "r.jsonl"
    common = ("rollout", config, "--dataset", dataset, "--out", out, "--max-tokens", 160, "--grade", "exact")
    said = run(*common, "--lambdas", "0,1", "--caps", "4,16")
    found = [(x["lambda"], x.get("cap"), x["n"]) for x in said["lambdas"]]
    assert found == [(0, None, COUNT), (1, None, COUNT), (1, 4, COUNT), (1, 16, COUNT)]
    tokens = [x["mean_tokens"] for x in said["lambdas"]]
    assert tokens[0] < tokens[2] < tokens[3] < tokens[1]
    assert run(*common, "--lambdas", "0,1", "--caps", "4,16")["written"] == 0
    assert run(*common, "--lambdas", "0,1", "--caps", "4", "--caps-at", "0")["written"] == COUNT
