"""`dami train` and `dami eval` as they are called, with good input and bad."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dami_router.cli import main
from dami_router.commands.rollout_files import read_grid
from dami_router.errors import MisuseError
from dami_router.estimators.training import TrainingSettings
from dami_router.evaluating.comparison import Contender, compare, cross_validated, unseen
from dami_router.evaluating.report import rows
from dami_router.manifest.family import load_family
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.records import Rollout, read_rollouts, write_rollouts

LAMBDAS = (0.0, 0.5, 1.0)


def rollouts(count: int, *, lambdas: tuple[float, ...] = LAMBDAS, first: int = 0) -> list[Rollout]:
    """Every other question is hard: only λ=1 is right. λ=0.5 is dominated by a mixture, and by λ=0."""
    return [
        Rollout(f"q{i}", f"{'hard' if i % 2 else 'easy'} {'word ' * (i * 7 % 9)}{i}", x, right, int(10 + 90 * x))
        for i in range(first, first + count)
        for x in lambdas
        for right in [float(x == 1 or not i % 2)]
    ]


def run(*arguments: object) -> int:
    """Call `dami` in this process and return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of rollouts of 60 questions."""
    write_rollouts(rollouts(60), tmp_path / "r.jsonl")
    return tmp_path / "r.jsonl"


def test_train_and_eval_say_how_their_held_out_figures_differ(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One price on all folds flatters: `dami train` says so and names `dami eval`, which says what it does."""
    assert run("train", file, "--out", tmp_path / "est") == 0
    said = capsys.readouterr()
    assert "on the held-out folds that its price was chosen on, " in said.out
    assert f"next: dami eval {file}   (same options: the accuracy to expect" in said.err
    assert run("eval", file, "--folds", 3) == 0
    assert "cross-validation: each query's λ comes from an estimator, and a price, of the other 2 folds" in (
        capsys.readouterr().out
    )


def test_train_counts_the_probe(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The held-out tokens of an estimator with confidence include its probe, as in `dami eval`."""
    known = tmp_path / "c.json"
    spent = []
    for tokens in (0, 7):
        known.write_text(json.dumps({f"q{i}": {"confidence": i % 2 / 2, "tokens": tokens} for i in range(60)}))
        assert run("train", file, "--confidence", known, "--out", tmp_path / f"e{tokens}", "--json") == 0
        spent.append(json.loads(capsys.readouterr().out)["held_out_tokens"])
    assert spent[1] == pytest.approx(spent[0] + 7)


def test_train_then_eval(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is trained is evaluated on new queries alone, and beats every mixture of static variants."""
    assert run("train", file, "--out", tmp_path / "est", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["queries"], said["evidence"]) == (60, [])
    write_rollouts([*rollouts(60), *rollouts(40, first=60)], tmp_path / "more.jsonl")
    assert run("eval", tmp_path / "more.jsonl", "--estimator", tmp_path / "est", "--json", "--folds", 2) == 0
    out = capsys.readouterr()
    found = json.loads(out.out)
    assert "skipped 60 queries used for training" in out.err
    assert (found["queries"], found["apgr"], found["dominated"]) == (40, None, [0.5])
    assert found["accuracy"] >= 0.95
    assert found["mean_tokens"] < 80
    low, high = found["over_random_mixing_interval"]
    assert 0.1 < low <= found["over_random_mixing"] <= high
    assert found["pareto_dist"] > 0
    assert [e["name"] for e in found["estimators"]] == [str(tmp_path / "est"), "query length"]


def test_eval_of_two_variants_has_apgr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With two variants, cross-validated, JSON has APGR by fold and CPT; a good estimator is near the best possible."""
    write_rollouts(rollouts(80, lambdas=(0.0, 1.0)), tmp_path / "r.jsonl")
    assert run("eval", tmp_path / "r.jsonl", "--json", "--folds", 4) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["apgr"] > 0.7
    assert len(found["apgr_by_fold"]) == 4
    low, high = found["apgr_interval"]
    assert low <= found["apgr"] <= high
    assert found["folds_without_gap"] == 0
    assert 0.4 <= found["cpt"]["80%"] <= 0.6
    assert found["lambda_histogram"].keys() == {"0", "1"}


def test_eval_writes_a_report(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report is one page with every picture inside, names the dominated variant, and fetches nothing."""
    assert run("eval", file, "--report", tmp_path / "rep", "--folds", 2) == 0
    page = (tmp_path / "rep" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "Dominated variants: λ=0.5" in page
    assert not any(word in page for word in ("http://", "https://", "<script"))
    assert {f.name for f in (tmp_path / "rep").iterdir()} >= {"frontier.png", "lambdas.png", "costs.png"}
    assert "dominated" in capsys.readouterr().out


def manifest(folder: Path) -> Path:
    """A family of three variants, without their files."""
    variants = [
        {
            "id": f"toy-l{round(100 * x):03d}", "lambda": x, "resolved": [], "folder": f"l{round(100 * x):03d}",
            "files": {},
            "chat_template": {"source": "instruct", "sha256": None, "opens_think": False},
            "sampling": {"source": None, "values": {}},
            "measured": [{"benchmark": "other", "accuracy": 0.5, "mean_tokens": 3.0, "n": 9}],
        }
        for x in (0.0, 0.5, 0.9)
    ]  # fmt: skip
    endpoint = {"source": "x", "architecture": "X", "parameters": 1, "dtype": "BF16", "files": {}}
    data: dict[str, Any] = {
        "schema_version": 1, "name": "toy", "created_with": {"tool": "t", "version": "1"}, "path": "uniform",
        "recipe": "",
        "endpoints": {"instruct": endpoint, "thinking": endpoint}, "variants": variants,
    }  # fmt: skip
    (folder / "dami_family.json").write_text(json.dumps(data))
    return folder / "dami_family.json"


def test_eval_writes_measurements_into_the_manifest(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Variants of the rollouts' λ get accuracy, tokens and n, once however often; others and other benchmarks stay."""
    family = manifest(tmp_path)
    for _ in range(2):
        assert run("eval", file, "--write-manifest", family, "--benchmark", "toy-bench", "--folds", 2) == 0
    assert f"wrote accuracy and mean tokens on `toy-bench` into {family}" in capsys.readouterr().err
    first, _, last = load_family(family).variants
    other, found = first.measured
    assert (found.benchmark, found.accuracy, found.mean_tokens, found.n) == ("toy-bench", 0.5, 10.0, 60)
    assert other.benchmark == "other"
    assert [m.benchmark for m in last.measured] == ["other"]
    assert [f.name for f in tmp_path.iterdir() if f.name.endswith(".partial")] == []


def test_no_query_answers_for_itself() -> None:
    """Questions that come twice under two ids cannot be learned by heart: what is random stays at chance."""
    rng = np.random.default_rng(0)
    rows = [
        Rollout(f"q{i}-{twin}", f"word{i}", x, float(x == hard), 10)
        for i, hard in enumerate(rng.integers(0, 2, 60))
        for twin in range(2)
        for x in (0.0, 1.0)
    ]
    found = cross_validated(grid_of(rows), TrainingSettings(), 5, lambda _: None)
    right = np.mean([hard == lambda_ for hard, lambda_ in zip(np.repeat(rng_hard(), 2), found.lambdas, strict=True)])
    assert right < 0.7


def rng_hard() -> list[int]:
    """The labels of the test above."""
    return [int(x) for x in np.random.default_rng(0).integers(0, 2, 60)]


def test_an_estimator_is_not_asked_what_it_was_trained_on(file: Path, tmp_path: Path) -> None:
    """Where every query was trained on, evaluation says so instead of giving a figure."""
    assert run("train", file, "--out", tmp_path / "est") == 0
    assert run("eval", file, "--estimator", tmp_path / "est") == 2


def test_an_estimator_that_was_not_trained_sees_all() -> None:
    """Only trained estimators have seen queries."""
    grid = grid_of(rollouts(4))
    assert unseen(grid, []).queries == grid.queries


def test_one_variant_has_a_point_and_no_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rollouts of one λ are reported as they are, with a warning."""
    write_rollouts(rollouts(5, lambdas=(0.5,)), tmp_path / "r.jsonl")
    assert run("eval", tmp_path / "r.jsonl", "--json") == 0
    out = capsys.readouterr()
    assert "only one variant" in out.err
    assert json.loads(out.out)["estimators"] == []


@pytest.mark.parametrize("correct", [0.0, 1.0])
def test_one_class_only_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str], correct: float) -> None:
    """All right or all wrong: the cheapest variant is chosen, APGR is null, nothing fails."""
    rows = [Rollout(f"q{i}", f"t {i}", x, correct, int(5 + 9 * x)) for i in range(60) for x in (0.0, 1.0)]
    write_rollouts(rows, tmp_path / "r.jsonl")
    assert run("eval", tmp_path / "r.jsonl", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["accuracy"], found["apgr"], found["mean_tokens"]) == (correct, None, 5.0)


def test_answers_without_tokens_are_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Zero tokens everywhere: accuracy alone decides, shares of nothing are null."""
    rows = [Rollout(f"q{i}", f"t {i}", x, float(x == 1 or i % 3 > 0), 0) for i in range(60) for x in (0.0, 1.0)]
    write_rollouts(rows, tmp_path / "r.jsonl")
    assert run("eval", tmp_path / "r.jsonl", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["accuracy"], found["tokens_of_largest_lambda"], found["cost_save"]) == (1.0, None, None)


def write_lines(path: Path, *changes: dict[str, object]) -> Path:
    base = {"query_id": "a", "query": "x", "lambda": 0.5, "correct": True, "tokens": 7}
    path.write_text("".join(json.dumps({**base, **change}) + "\n" for change in changes))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (({}, {}), "two rollouts at λ=0.5 (1 duplicate rows in total)"),
        (({}, {"correct": False}), "two rollouts at λ=0.5"),
        (({"sample": 1}, {"sample": 1}), "two rollouts at λ=0.5"),
        (({}, {"lambda": 1, "query": "y"}), "two different texts"),
        (({"confidence": 0.5}, {"lambda": 1, "confidence": 0.6}), "two confidences"),
        (({}, {"query_id": "b", "lambda": 1}), "2 of 2 queries lack a variant"),
        (({"lambda": 1.2},), "`lambda` expects a number in [0, 1], found 1.2"),
        (({"lambda": -0.1},), "`lambda` expects"),
        (({"lambda": True},), "`lambda` expects"),
        (({"lambda": float("nan")},), "found nan"),
        (({"correct": float("nan")},), "`correct` expects"),
        (({"tokens": float("inf")},), "`tokens` expects"),
        (({"tokens": 10**400},), "too large"),
        (({"confidence": 2},), "`confidence` expects"),
        (({"query": None},), "`query` expects text"),
        (({"query": 5},), "`query` expects text"),
        (({"query_id": ["a"]},), "`query_id` expects text"),
        (({"answer": {}},), "`answer` expects text"),
        (({"think": "yes"},), "`think` expects true or false"),
        (({"lambda": 0},), "at least two variants"),
    ],
)  # fmt: skip
def test_bad_rollouts_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: tuple[dict[str, object], ...], message: str
) -> None:  # fmt: skip
    """Missing variants, copies, contradictions, NaN and numbers out of range: exit 2, one message, nothing written."""
    path = write_lines(tmp_path / "r.jsonl", *changes)
    assert run("train", path, "--out", tmp_path / "est") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "est").exists()


def test_numbered_samples_are_averaged() -> None:
    """Several answers of one variant to one query count as their mean."""
    made = grid_of([Rollout("a", "x", 0.5, float(i == 0), 10 * i, sample=i) for i in range(4)])
    assert (made.correct.item(), made.tokens.item()) == (0.25, 15.0)


def test_incomplete_queries_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--drop-incomplete evaluates the queries that every variant answered; where none is left, it says so."""
    write_rollouts([*rollouts(60), Rollout("odd", "x", 0.0, 1.0, 1)], tmp_path / "r.jsonl")
    assert run("eval", tmp_path / "r.jsonl", "--json") == 2
    assert "1 of 61 queries lack a variant" in capsys.readouterr().err
    assert run("eval", tmp_path / "r.jsonl", "--json", "--drop-incomplete", "--folds", 2) == 0
    assert json.loads(capsys.readouterr().out)["queries"] == 60
    with pytest.raises(MisuseError, match="no query was answered by every variant"):
        grid_of([Rollout("a", "x", 0.0, 1, 1), Rollout("b", "y", 1.0, 1, 1)], drop_incomplete=True)


def test_nearly_equal_lambdas_are_one_variant(tmp_path: Path) -> None:
    """0.1 + 0.2 and 0.3 are the same λ."""
    path = write_lines(tmp_path / "r.jsonl", {"lambda": 0.1 + 0.2}, {"lambda": 0.3, "query_id": "b", "query": "y"})
    assert grid_of(read_rollouts(path)).lambdas == (0.3,)


def test_a_missing_confidence_file_is_said_in_words(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is named once, without the system's number, and the message says what writes one."""
    assert run("eval", tmp_path / "gone.jsonl") == 2
    assert "gone.jsonl: cannot be read as rollouts: No such file or directory" in capsys.readouterr().err
    for command in (("eval", file), ("train", file, "--out", tmp_path / "est")):
        assert run(*command, "--confidence", tmp_path / "none.json") == 2
        said = capsys.readouterr().err
        assert f"{tmp_path / 'none.json'}: cannot be read: No such file or directory" in said
        assert "Errno" not in said
        assert "dami calibrate --confidence FILE" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "JSON object"),
        ("{", "cannot be read"),
        ('{"q0": 2}', "in [0, 1]"),
        ('{"q0": NaN}', "in [0, 1]"),
        ('{"q0": {"confidence": 2, "tokens": 1}}', "in [0, 1]"),
        ('{"q0": {"confidence": 0.5, "tokens": -1}}', "at least 0"),
        ('{"q0": {"confidence": 0.5}}', "in [0, 1]"),
        ("{}", "60 queries"),
    ],
)
def test_a_bad_confidence_file_is_one_message(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    """No object, no JSON, numbers out of range and missing queries are each one message."""
    (tmp_path / "c.json").write_text(text)
    assert run("train", file, "--confidence", tmp_path / "c.json", "--out", tmp_path / "est") == 2
    assert message in capsys.readouterr().err


def test_a_confidence_file_is_a_feature(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Confidence from a file beside the rollouts is trained on, and evaluated with."""
    (tmp_path / "c.json").write_text(json.dumps({f"q{i}": 0.1 + 0.8 * (i % 2 == 0) for i in range(60)}))
    assert run("train", file, "--confidence", tmp_path / "c.json", "--out", tmp_path / "est", "--json") == 0
    assert json.loads(capsys.readouterr().out)["evidence"] == ["confidence"]
    assert run("eval", file, "--confidence", tmp_path / "c.json", "--folds", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0


def test_a_probe_is_paid_for_wherever_confidence_is_used(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tokens are in the estimator's row, and not in the row of the text alone, which is evaluated beside it."""
    sure = {f"q{i}": {"confidence": 0.1 + 0.8 * (i % 2 == 0), "tokens": 4} for i in range(60)}
    (tmp_path / "c.json").write_text(json.dumps(sure))
    assert run("eval", file, "--confidence", tmp_path / "c.json", "--folds", 2, "--json") == 0
    out = capsys.readouterr()
    first, second, _ = json.loads(out.out)["estimators"]
    assert (first["name"], first["estimator_tokens"]) == ("preference", 4.0)
    assert first["mean_tokens"] == pytest.approx(59.0)
    assert (second["name"], second["estimator_tokens"]) == ("preference, text alone", 0.0)
    assert "--probe-tokens" not in out.err


def test_a_probe_of_unknown_cost_is_counted_in_full(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Confidences that do not say what they cost are taken for the longest probe, with a warning; an option sets it."""
    (tmp_path / "c.json").write_text(json.dumps({f"q{i}": 0.1 + 0.8 * (i % 2 == 0) for i in range(60)}))
    command = ("eval", file, "--confidence", tmp_path / "c.json", "--folds", 2, "--json")
    assert run(*command) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["estimator_tokens"] == 16.0
    assert "60 confidences do not say how many tokens their probe took: 16 each" in out.err
    assert run(*command, "--probe-tokens", 2) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["estimator_tokens"] == 2.0
    assert "probe took" not in out.err


def test_rollouts_may_say_what_a_confidence_cost(tmp_path: Path) -> None:
    """`probe_tokens` beside `confidence` in a row is the cost of that query's probe."""
    path = write_lines(tmp_path / "r.jsonl", {"confidence": 0.5, "probe_tokens": 3}, {"lambda": 1})
    made = read_grid(path)
    assert made.probe_tokens is not None
    assert made.probe_tokens.tolist() == [3.0]


def test_a_budget_counts_the_probe(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is cross-validated is what `dami train` would train: the same budget, and the probe's tokens within it."""
    sure = {f"q{i}": {"confidence": 0.1 + 0.8 * (i % 2 == 0), "tokens": 20} for i in range(60)}
    (tmp_path / "c.json").write_text(json.dumps(sure))
    for budget in (0.4, 0.7):
        options = ("--confidence", tmp_path / "c.json", "--budget", budget, "--json")
        assert run("eval", file, *options, "--folds", 2) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["mean_tokens"] <= 100 * budget + 10
        assert found["mean_tokens"] >= min(100 * budget, 75) - 12
    assert run("train", file, "--out", tmp_path / "est", "--confidence", tmp_path / "c.json", "--budget", 0.25) == 2
    assert "the probe for the confidence takes 20.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--folds", 1), 2),
        (("--budget", 0), 2),
        (("--budget", 1.5), 2),
        (("--embeddings", "no-such-model"), 2),
        (("--price", 7), 2),
        (("--estimator", "no-such"), 2),
        (("--benchmark", "x"), 2),
        (("--write-manifest", "none.json"), 2),
    ],
)
def test_misuse_is_one_message(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], code: int
) -> None:
    """Options without meaning exit 2 with one message."""
    assert run("eval", file, *arguments) == code
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of one process is read from /proc")
def test_a_hundred_thousand_rows_take_little_memory(tmp_path: Path) -> None:
    """10⁵ rows are read and given a point with its interval in well under 400 MB (benchmarks/estimators.py: 10⁶)."""
    path = tmp_path / "many.jsonl"
    with path.open("w") as out:
        for i in range(10_000):
            out.writelines(
                f'{{"query_id":"{i}","query":"question {i}","lambda":{j / 9:.4f},"correct":{j % 2},"tokens":{j}}}\n'
                for j in range(10)
            )
    code = (
        "import re, sys; from pathlib import Path\n"
        "from dami_router.rollouts.gathering import grid_of; from dami_router.rollouts.records import read_rollouts\n"
        "grid = grid_of(read_rollouts(Path(sys.argv[1])))\n"
        "assert grid.correct.shape == (10000, 10) and grid.static(1.0).accuracy.mean == 1.0\n"
        # Not ru_maxrss: Linux hands a child the peak of the process that started it.
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, env=os.environ
    )
    assert int(done.stdout) < 400


def test_what_choosing_costs_is_counted() -> None:
    """An estimator that generates tokens of its own has them in its point, its curve and every comparison."""
    grid = grid_of(rollouts(40, lambdas=(0.0, 1.0)))
    free = Contender("free", tuple(float(i % 2) for i in range(40)), np.arange(40.0) % 2)
    paid = replace(free, cost=np.full(40, 10.0))
    found = compare(grid, [free, paid])
    first, second = found.metrics
    assert found.points[1].tokens.mean == pytest.approx(found.points[0].tokens.mean + 10)
    assert (first["estimator_tokens"], second["estimator_tokens"]) == (0.0, 10.0)
    assert second["over_random_mixing"] < first["over_random_mixing"]
    assert second["tokens_of_largest_lambda"] > first["tokens_of_largest_lambda"]
    assert second["cost_save"] == pytest.approx(first["cost_save"] - 0.1)
    assert [b - a for (a, _), (b, _) in zip(*found.curves, strict=True)] == pytest.approx([10.0] * 41)
    assert "10.0 of them its own" in rows(found)[3][-1]


def test_folds_without_a_gap_are_said() -> None:
    """A fold in which the larger λ gains nothing has no APGR; the note says how many there are."""
    grid = grid_of(Rollout(f"q{i}", f"t{i}", x, float(x == 1 or i < 20), 5) for i in range(40) for x in (0.0, 1.0))
    folds = (np.flatnonzero(grid.correct[:, 0]), np.flatnonzero(grid.correct[:, 0] == 0))
    found = compare(grid, [Contender("x", (1.0,) * 40, np.zeros(40), folds)])
    assert found.metrics[0]["folds_without_gap"] == 1
    assert "1 folds without a gap" in rows(found)[2][-1]


def test_comparing_nothing_still_has_points() -> None:
    """Without estimators there are static points and the oracle."""
    found = compare(grid_of(rollouts(6)), [])
    assert (found.dominated, found.oracle.accuracy.mean) == ((0.5,), 1.0)
