"""An estimator on Instruct's hidden states: trained from a live server, evaluated, and served, over HTTP and inside."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from fakes.loop import Loop
from fakes.world import Client, World
from support.live_servers import section, served

from dami_merge.lab import SHIPPED_ROLLOUTS
from dami_merge.live import Engine
from dami_router.cli import main
from dami_router.errors import MisuseError
from dami_router.estimators.hidden_encoder import HiddenEncoder
from dami_router.estimators.log_probs import HiddenState
from dami_router.rollouts.records import read_rollouts, write_rollouts

COUNT = 80


def run(*arguments: object) -> tuple[int, str, str]:
    """Run a command in this process: its exit code, and what it says on both streams."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0), out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The shipped rollouts of some queries to train on, and of others."""
    rows = [row for row in read_rollouts(SHIPPED_ROLLOUTS) if row.lambda_ in (0.0, 0.6, 1.0)]
    ids = list(dict.fromkeys(row.query_id for row in rows))
    folder = tmp_path_factory.mktemp("hidden")
    for name, kept in (("train", set(ids[:COUNT])), ("other", set(ids[COUNT : COUNT + 40]))):
        write_rollouts([row for row in rows if row.query_id in kept], folder / f"{name}.jsonl")
    return folder / "train.jsonl", folder / "other.jsonl"


@pytest.fixture(scope="module")
def trained(server: Client, rollouts: tuple[Path, Path]) -> tuple[Path, Path]:
    """The router.yml of the live server, and an estimator that was trained on its hidden states."""
    folder = rollouts[0].parent
    config = folder / "live.yml"
    config.write_text(f'backends: [{{url: "{server.url}", protocol: live}}]\n')
    code, said, err = run("train", rollouts[0], "--hidden", config, "--out", folder / "estimator")
    assert code == 0, err
    assert "from hidden states" in said
    return config, folder / "estimator"


def test_it_is_evaluated_on_the_states_of_other_queries(
    trained: tuple[Path, Path], rollouts: tuple[Path, Path]
) -> None:
    """`dami eval --estimator --hidden` reads the states of other queries; without --hidden it says what is missing."""
    config, estimator = trained
    described = json.loads((estimator / "estimator.json").read_text())["encoder"]
    assert (described["kind"], described["model"], described["dimensions"]) == ("hidden", "instruct", 64)
    code, said, _ = run("eval", rollouts[1], "--estimator", estimator, "--hidden", config, "--json")
    assert (code, json.loads(said)["queries"]) == (0, 40)
    code, _, err = run("eval", rollouts[1], "--estimator", estimator)
    assert (code, "--hidden ROUTER.yml" in err) == (1, True)
    code, said, _ = run("eval", rollouts[0], "--hidden", config, "--folds", 3, "--json")
    assert (code, json.loads(said)["estimators"][0]["name"]) == (0, "preference")


def test_it_is_served_with_one_prefill_over_http_and_inside(
    trained: tuple[Path, Path], rollouts: tuple[Path, Path], server: Client, pair: tuple[str, str], loop: Loop,
    tmp_path: Path,
) -> None:  # fmt: skip
    """A router in front of `dami live`, and `dami live` itself, decide alike, and as it was trained to."""
    texts = list(dict.fromkeys(row.query for row in read_rollouts(rollouts[1])))[:6]
    links = f"estimator: {{chain: [{{trained: {trained[1]}}}]}}\n"

    def decided(client: Client) -> list[tuple[str, float]]:
        chats = [{"messages": [{"role": "user", "content": text}]} for text in texts]
        found = [client.post("/v1/route", chat).json for chat in chats]
        return [(x["estimator"], x["lambda"]) for x in found]

    world = World(loop)
    try:
        outside = decided(world.proxy(f'backends: [{{url: "{server.url}", protocol: live}}]\n{links}'))
    finally:
        world.close()
    engine = Engine.load(*pair, mode="mixed", max_rows=8)
    with served(loop, engine, section(tmp_path, links, engine)) as client:
        inside = decided(client)
    assert {name for name, _ in outside} == {"preference"}
    assert inside == outside
    assert {x for _, x in outside} <= {0.0, 0.6, 1.0}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--embeddings", "model"], "give only one of the two"),
        (["--hidden", "none.yml"], "none.yml"),
    ],
)
def test_mistakes_are_one_message(
    trained: tuple[Path, Path], rollouts: tuple[Path, Path], tmp_path: Path, options: list[str], says: str
) -> None:
    """Two encoders, and a router.yml that is not there."""
    given = options if "--hidden" in options else [*options, "--hidden", trained[0]]
    code, _, err = run("train", rollouts[0], *given, "--out", tmp_path / "e")
    assert (code, says in err) == (2, True), err
    assert "Traceback" not in err


def test_states_of_two_models_are_never_mixed() -> None:
    """An encoder is of one model."""
    states: dict[str, Any] = {"a": HiddenState((0.0, 1.0), "x"), "b": HiddenState((1.0, 0.0), "y")}
    with pytest.raises(MisuseError, match="several models: x, y"):
        HiddenEncoder.of(states)
