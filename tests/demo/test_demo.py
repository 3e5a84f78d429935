"""The demo and the lab command, as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from dami_merge.demo.demo_report import as_dict, as_text, examples, page_address, write_report
from dami_merge.demo.running import Demo, Routed
from dami_merge.lab import LabQuery
from dami_router.config.router_yml import load_section
from dami_router.estimators.calibrated import CalibratedMap
from dami_router.evaluating.frontier_file import load_frontier
from dami_router.rollouts.grid import Figure, Point
from dami_router.rollouts.records import Rollout

ENDS = ("instruct", "thinking")


def dami(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("dami")
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False, env=env)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A small demo, run once."""
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, dami("demo", "--out", out, "--queries", 120, "--json")


def test_the_demo_shows_what_routing_does(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """Accuracy and tokens grow from λ=0 to λ=1, routing beats mixtures of its cost, the oracle beats all."""
    out, done = finished
    assert done.returncode == 0, done.stderr[-2000:]
    data = json.loads(done.stdout)
    first, last = data["static"][0], data["static"][-1]
    assert (first["lambda"], last["lambda"]) == (0.0, 1.0)
    assert last["accuracy"]["mean"] > first["accuracy"]["mean"] + 0.1
    assert last["tokens"]["mean"] > 5 * first["tokens"]["mean"]
    routed = data["routed"]
    assert routed["tokens"]["mean"] < 0.6 * last["tokens"]["mean"]
    over = data["accuracy_over_mixing"]
    assert 0 < over["low"] < over["mean"] < over["high"]
    # The live engine answers at λ(q) itself, between the variants: about as well, at about the same cost.
    exact = data["exact"]
    assert abs(exact["mean_lambda"] - data["wanted_mean_lambda"]) < 0.05
    assert abs(exact["tokens"]["mean"] - routed["tokens"]["mean"]) < 0.1 * last["tokens"]["mean"]
    assert abs(exact["accuracy"]["mean"] - routed["accuracy"]["mean"]) < 0.08
    assert data["oracle"]["accuracy"]["mean"] >= max(p["accuracy"]["mean"] for p in data["static"])
    assert {p.name for p in out.iterdir()} >= {"report.html", "frontier.png", "recipe.yml", "variants", "lab"}


def test_the_demo_leaves_a_router_for_the_page(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """`dami live --router` can read what the demo wrote: served confidence, calibrated on its unlabelled queries."""
    out, _ = finished
    chain = load_section(out / "router.yml").estimator
    assert [estimator.name for estimator in chain.estimators] == ["effort", "confidence"]
    fitted = CalibratedMap.load(out / "confidence.json")
    assert (fitted.tokens, fitted.scores["instruct"].mean_lambda, fitted("instruct", 1.0)) == (1, 0.36, 0.0)
    scores = fitted.scores["instruct"].scores
    assert len(scores) == 120
    assert scores[0] == 0.0 < scores[-1] <= 1.0


def test_the_probe_is_part_of_the_routed_cost(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """If every query goes to λ=0, routing costs one token more than that variant, and gains nothing over mixing."""
    from dami_merge.demo.running import PROBE_TOKENS, _scored
    from dami_merge.lab import draw_queries
    from dami_merge.lab.rolling_out import roll_out
    from dami_merge.lab.tiny_model import load_endpoint
    from dami_router.rollouts.gathering import grid_of

    out, _ = finished
    queries = draw_queries("test", 40)
    answers = {x: roll_out(load_endpoint(out / "lab" / end), queries, x, end) for x, end in enumerate(ENDS)}
    grid = grid_of([*answers[0], *answers[1]])
    point, over = _scored(grid, answers[0])
    assert point.tokens.mean == pytest.approx(grid.static(0.0).tokens.mean + PROBE_TOKENS)
    assert over is not None
    assert over.mean <= 0


def test_the_demo_ends_with_the_way_to_the_page(demo: Demo) -> None:
    """The page's address fills in a query that λ = 0 gets wrong and a larger λ gets right; a browser decodes it."""
    place, _, query = page_address(demo).partition("#playground?")
    assert place == "http://127.0.0.1:8010/ui"
    assert parse_qs(query) == {"prompt": ["9<1="], "lambda": ["0"]}


def test_serving_does_not_go_with_json(tmp_path: Path) -> None:
    """One JSON object cannot be both the report and the server's address; nothing is run."""
    done = dami("demo", "--out", tmp_path / "x", "--serve", "--json")
    assert (done.returncode, "--serve and --json" in done.stderr) == (2, True)
    assert not (tmp_path / "x").exists()


def test_the_demo_refuses_what_no_lambda_can_give(tmp_path: Path) -> None:
    """A mean λ above the largest is misuse, and nothing is written."""
    done = dami("demo", "--out", tmp_path / "x", "--mean-lambda", 0.7)
    assert done.returncode == 2
    assert "--mean-lambda < --max-lambda" in done.stderr
    assert not (tmp_path / "x").exists()


def test_the_demo_s_variants_are_merges(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """The variants that it answers with are real mergekit output: λ=0.4 is the interpolation of the endpoints."""
    import torch
    from safetensors.torch import load_file

    from dami_merge.interpolation.formula import interpolate

    out, _ = finished
    files = [out / p / "model.safetensors" for p in ("lab/instruct", "lab/thinking", "variants/l040")]
    instruct, thinking, merged = map(load_file, files)
    for name, tensor in merged.items():
        assert torch.equal(tensor, interpolate(instruct[name], thinking[name], 0.4)), name
    assert "DAMI" in (out / "variants/l040/README.md").read_text()


def test_the_demo_leaves_other_folders_alone(tmp_path: Path) -> None:
    """A folder that holds something else is refused, and nothing in it changes."""
    (tmp_path / "mine.txt").write_text("mine")
    done = dami("demo", "--out", tmp_path)
    assert done.returncode == 2
    assert "holds something else" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_lab_writes_the_pair(tmp_path: Path) -> None:
    """`dami lab DIR` writes two checkpoints, twice without harm, and says where they are."""
    for _ in range(2):
        done = dami("lab", tmp_path / "lab", "--json")
        assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert Path(data["instruct"], "model.safetensors").is_file()
    assert Path(data["thinking"], "config.json").is_file()
    (tmp_path / "lab" / "instruct" / "config.json").write_text("{}")
    changed = dami("lab", tmp_path / "lab")
    assert changed.returncode == 1
    assert (tmp_path / "lab" / "instruct" / "config.json").read_text() == "{}"


def test_lab_options_fit_together(tmp_path: Path) -> None:
    """--seed without --train is misuse."""
    done = dami("lab", tmp_path / "x", "--seed", 1)
    assert done.returncode == 2
    assert "--train --seed 1" in done.stderr


def point(accuracy: float, tokens: float, lambda_: float) -> Point:
    return Point(Figure(accuracy, accuracy - 0.02, accuracy + 0.02), Figure(tokens, tokens, tokens), 0.5, lambda_)


def story(text: str, lambda_: float, instruct: bool, routed: bool, thinking: bool) -> Routed:
    def rollout(correct: bool, x: float) -> Rollout:
        return Rollout(text, text, x, float(correct), 5, answer="<think>1</think>2")

    return Routed(
        LabQuery(text, text, "2", 1), 0.5, lambda_, lambda_,
        rollout(routed, lambda_), rollout(instruct, 0.0), rollout(thinking, 1.0),
    )  # fmt: skip


@pytest.fixture
def demo() -> Demo:
    """A made-up result with one query of each kind."""
    return Demo(
        lambdas=(0.0, 0.5, 1.0),
        static=(point(0.6, 2, 0.0), point(0.8, 30, 0.5), point(0.79, 60, 1.0)),
        routed=point(0.85, 15, 0.3),
        exact=point(0.86, 14, 0.31),
        oracle=point(0.95, 10, 0.2),
        over_mixing=Figure(0.0507, 0.031, 0.07),
        exact_over_mixing=None,
        over_thinking=Figure(0.06, -0.01, 0.13),
        queries=(
            story("1+1=", 0.0, True, True, True),
            story("1+1+0=", 0.0, True, True, True),
            story("9<1=", 0.5, False, True, True),
            story("5>2<1=", 0.5, False, False, True),
        ),
        calibration=7,
        mean_lambda=0.3,
        max_lambda=0.6,
    )


def test_the_report_tells_the_table_and_the_stories(demo: Demo, tmp_path: Path) -> None:
    """Text, JSON and HTML carry the same figures; a dominated variant is named; intervals are shown."""
    text = as_text(demo)
    assert "λ = 1 (dominated)" in text
    assert "best random mixture of static variants at equal mean tokens: routed +5.1 [+3.1, +7.0]" in text
    assert "exactly λ(q) not comparable" in text
    assert "Thinking variant for every query: routed +6.0 [-1.0, +13.0], at 25% of its tokens" in text
    assert [r.query.text for r in examples(demo)] == ["1+1+0=", "9<1=", "5>2<1="]
    data = as_dict(demo)
    assert [p["dominated"] for p in data["static"]] == [False, False, True]
    assert data["accuracy_over_thinking"] == pytest.approx(0.06)
    assert data["accuracy_over_mixing"] == {"mean": 0.0507, "low": 0.031, "high": 0.07}
    assert data["exact_accuracy_over_mixing"] is None
    assert data["exact"]["accuracy"]["mean"] == 0.86
    assert "exactly λ(q), live" in text
    html, picture, points = (tmp_path / name for name in ("report.html", "frontier.png", "frontier.json"))
    assert sorted(write_report(demo, tmp_path)) == sorted([html, picture, points])
    frontier = load_frontier(tmp_path)
    assert [(p.name, p.kind, p.dominated) for p in frontier.points][2:5] == [
        ("λ = 1", "variant", True), ("routed, zero-shot", "routed", False), ("exactly λ(q), live", "routed", False),
    ]  # fmt: skip
    html, picture = html.read_bytes(), picture.read_bytes()
    assert b"9&lt;1=" in html
    assert b"<think>" not in html
    assert "<span>+5.1 [+3.1, +7.0]</span>" in html.decode()
    assert picture.startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.partial"))
