"""`dami calibrate` on served lab models, and its parts: wishes on held-out queries, and what it says to mistakes."""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from fakes.world import World
from hypothesis import given, settings
from hypothesis import strategies as st

from dami_router.calibration import measuring
from dami_router.calibration.costs import LambdaCost, TokenCosts, tokens_of_rollouts, tokens_of_variants
from dami_router.calibration.fitting import Rule, Sample, WantedMean, fit
from dami_router.calibration.probe_journal import Probed, journal
from dami_router.choosing.policy import Figures, nearest
from dami_router.config.router_yml import parse_config
from dami_router.config.specs import VariantSpec
from dami_router.errors import FailureError, MisuseError
from dami_router.estimators.calibrated import CalibratedMap
from dami_router.estimators.confidence import Confidence, ConfidenceScore
from dami_router.estimators.log_probs import BusyError
from dami_router.estimators.query import Query
from dami_router.rollouts.records import Rollout

if TYPE_CHECKING:
    from fakes.lab import LabModel

DAMI = str(Path(sys.executable).with_name("dami"))


def samples(count: int, seed: int = 0) -> list[Sample]:
    """Return queries with scores spread over (0, 1)."""
    rng = Random(seed)
    return [Sample(f"q{i}", rng.random(), rng.random()) for i in range(count)]


def among(*lambdas: float) -> Rule:
    """Return the rule `nearest` among variants."""
    return lambda lambda_, draw: nearest(lambda_, lambdas)


@settings(max_examples=12, deadline=None)
@given(st.floats(0.05, 0.6), st.sampled_from([(0.0, 1.0), (0.0, 0.3, 0.7), (0.0, 0.5, 0.6, 0.8, 1.0)]))
def test_a_wanted_mean_lambda_is_met_on_queries_not_fitted_on(share: float, lambdas: tuple[float, ...]) -> None:
    """The variants that answer have the wanted mean λ, within sampling, whatever the family's λ values are."""
    top = max(lambdas)
    wish = WantedMean("lambda", share * top, top)
    found = fit("instruct", samples(600), wish, LambdaCost(), among(*lambdas))
    assert found.fitted == pytest.approx(wish.mean, abs=0.02)
    assert found.mean == pytest.approx(wish.mean, abs=0.13)
    assert found.low <= found.mean <= found.high
    assert math.fsum(share for _, share in found.histogram) == pytest.approx(1)
    assert {x for x, _ in found.histogram} <= set(lambdas)
    assert (found.fitted_on, found.held_out) == (420, 180)


def test_tokens_need_not_grow_with_lambda() -> None:
    """A wish in tokens is met by measured tokens, also where a larger λ is cheaper than the smallest."""
    costs = TokenCosts({0.0: 15.0, 0.5: 11.0, 1.0: 23.0})
    found = fit("instruct", samples(600), WantedMean("tokens", 17.0, 1.0), costs, among(0.0, 0.5, 1.0))
    assert found.fitted == pytest.approx(17.0, abs=0.2)
    assert found.mean == pytest.approx(17.0, abs=1.0)


def test_each_query_costs_its_own_tokens_where_they_are_known() -> None:
    """Rollouts give every query its own cost; a query without any has the mean; the answers' grades are never read."""
    rows = [Rollout(f"q{i}", f"q{i}", x, 0.0, tokens) for i in range(2) for x, tokens in ((0.0, 2), (1.0, 10 + 20 * i))]
    costs = tokens_of_rollouts(rows)
    assert (costs("q0", 1.0), costs("q1", 1.0), costs("new", 1.0)) == (10.0, 30.0, 20.0)
    with pytest.raises(MisuseError, match=r"λ=0\.5, only at 0, 1"):
        costs("q0", 0.5)
    assert tokens_of_rollouts(rows, between=True)("new", 0.5) == pytest.approx(11.0)


def test_a_live_server_s_tokens_lie_between_those_of_measured_variants() -> None:
    """Measured variants give the cost at every λ between them, on a server of every λ alone, and none beyond them."""
    figures = [{"any": Figures(0.5, tokens, 10)} for tokens in (10.0, 30.0)]
    variants = [VariantSpec(f"v{x}", x, frozenset(), figures=f) for x, f in zip((0.0, 0.5), figures, strict=True)]
    assert tokens_of_variants(variants, between=True)("any", 0.25) == pytest.approx(20.0)
    for between, lambda_, says in ((False, 0.25, "of every variant"), (True, 0.75, "on both sides of it")):
        with pytest.raises(MisuseError, match=r"only at 0, 0\.5") as refused:
            tokens_of_variants(variants, between=between)("any", lambda_)
        assert says in str(refused.value.hint)


def test_a_wish_out_of_reach_is_told_with_what_can_be_had() -> None:
    """The nearest that can be had is taken, and its range is known."""
    found = fit(
        "instruct", samples(100), WantedMean("tokens", 500.0, 1.0), TokenCosts({0.0: 2.0, 1.0: 60.0}), among(0.0, 1.0)
    )
    assert found.fitted == found.reach[1]
    assert 2.0 <= found.reach[0] < found.reach[1] <= 60.0


def test_which_queries_are_held_out_depends_on_the_queries_alone() -> None:
    """Another order of the same queries gives the same map."""
    some = samples(200)
    first, second = (
        fit("instruct", part, WantedMean("lambda", 0.3, 1.0), LambdaCost(), among(0.0, 1.0))
        for part in (some, some[::-1])
    )
    assert first == second


def test_too_few_queries_are_refused() -> None:
    """A map of a handful of queries would be noise."""
    with pytest.raises(MisuseError, match="at least 20"):
        fit("instruct", samples(19), WantedMean("lambda", 0.3, 1.0), LambdaCost(), among(0.0, 1.0))


def test_a_journal_goes_on_after_a_crash_and_refuses_other_settings(tmp_path: Path) -> None:
    """Half a line at the end is cut off; other settings, damage and a second writer are refused."""
    path = tmp_path / "j"
    with journal(path, {"tokens": 4}) as opened:
        opened.append("aa", Probed({"instruct": 0.5}, {"instruct": 3}))
        with pytest.raises(FailureError, match="another calibration"), journal(path, {"tokens": 4}):
            pass
    path.write_bytes(path.read_bytes() + b'{"query": "bb", "sco')
    with journal(path, {"tokens": 4}) as opened:
        assert opened.done == {"aa": Probed({"instruct": 0.5}, {"instruct": 3})}
        opened.append("cc", Probed({"instruct": 0.25, "entropy": 0.5}, {"instruct": 3, "entropy": 6}))
    with journal(path, {"tokens": 4}) as opened:
        assert set(opened.done) == {"aa", "cc"}
    with pytest.raises(MisuseError, match="other settings"), journal(path, {"tokens": 8}):
        pass
    path.write_text('{"tokens": 4}\n{"query": "x", "scores": {"instruct": "high"}}\n')
    with pytest.raises(MisuseError, match="damaged"), journal(path, {"tokens": 4}):
        pass


def test_a_journal_without_measurements_is_none(tmp_path: Path) -> None:
    """A run that measured nothing leaves no file; one that was killed leaves a file that others may write over."""
    path = tmp_path / "j"
    with pytest.raises(FailureError), journal(path, {"tokens": 4}):
        raise FailureError("stopped")
    assert not path.exists()
    path.write_text('{"tokens": 4}\n{"half')
    with journal(path, {"tokens": 8}) as opened:
        opened.append("aa", Probed({"instruct": 0.5}, {"instruct": 3}))
    assert path.read_text().splitlines()[0] == '{"tokens": 8}'


def run(*arguments: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `dami calibrate`."""
    command = [DAMI, "calibrate", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == check, done.stderr
    assert "Traceback" not in done.stderr
    return done


CHAINS = [f"{a}+{b}-{c}{op}{d}=" for a in (1, 5, 8) for b in (2,) for c in (3, 9) for op in "<>+-" for d in (4, 6)]


@pytest.fixture
def served(world: World, instruct: LabModel, thinking: LabModel, tmp_path: Path) -> tuple[Path, Path, list[Any]]:
    """A router.yml over the lab pair on vLLM's routes, a file of queries, and the servers."""
    from fakes.lab import LabVllm

    servers = [world.start(LabVllm(f"v-l{x}00", model)) for x, model in ((0, instruct), (1, thinking))]
    (tmp_path / "router.yml").write_text(
        "variants: [{id: v-l000, lambda: 0}, {id: v-l100, lambda: 1}]\nbackends:\n"
        + "".join(f'  - {{variant: {s.name}, url: "{s.url}", protocol: openai}}\n' for s in servers)
    )
    rows = (json.dumps({"query_id": f"c{i}", "query": chain}) for i, chain in enumerate(CHAINS))
    (tmp_path / "queries.jsonl").write_text("\n".join(rows))
    return tmp_path / "router.yml", tmp_path / "queries.jsonl", servers


def test_the_whole_way_from_queries_to_routed_lambda(served: tuple[Path, Path, list[Any]], tmp_path: Path) -> None:
    """calibrate writes the map, the lines that it prints make a valid router.yml, and its λ are the map's."""
    config, queries, servers = served
    confidences = tmp_path / "c.json"
    done = run(config, "--queries", queries, "--mean-lambda", 0.4, "--confidence", confidences)
    lines = done.stdout.split("router.yml:\n\n")[1]
    config.write_text(config.read_text() + lines)
    chain = parse_config(config.read_text(), {}, tmp_path).estimator
    made = CalibratedMap.load(tmp_path / "confidence.json")
    assert [link.name for link in chain.estimators] == ["effort", "confidence"]
    assert list(made.scores) == ["instruct"]
    known = json.loads(confidences.read_text())
    assert list(known) == [f"c{i}" for i in range(len(CHAINS))]
    command = [DAMI, "route", str(config), CHAINS[5], "--json"]
    decision = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert decision["evidence"]["confidence"] == pytest.approx(known["c5"]["confidence"])
    assert decision["evidence"]["tokens"] == known["c5"]["tokens"]
    assert decision["lambda"] == pytest.approx(made("instruct", known["c5"]["confidence"]), abs=1e-6)
    mean = math.fsum(nearest(made("instruct", c["confidence"]), (0, 1)) for c in known.values()) / len(known)
    assert mean == pytest.approx(0.4, abs=0.15)
    assert not (tmp_path / "confidence.json.partial").exists()
    assert max(map(len, done.stdout.split("wrote")[0].splitlines())) < 100
    assert {call.path for call in servers[1].calls} == set()


def test_auto_measures_every_form_that_the_servers_give(served: tuple[Path, Path, list[Any]], tmp_path: Path) -> None:
    """A map for each form, so that the estimator may fall back; --json tells how each met the wish."""
    config, queries, servers = served
    done = run(config, "--queries", queries, "--mean-lambda", 0.4, "--form", "auto", "--tokens", 4, "--json")
    data = json.loads(done.stdout)
    assert [r["form"] for r in data["results"]] == ["discrepancy", "entropy", "instruct"]
    assert all(r["low"] <= r["mean"] <= r["high"] for r in data["results"])
    made = CalibratedMap.load(tmp_path / "confidence.json")
    assert (made.tokens, set(made.scores)) == (4, {"discrepancy", "entropy", "instruct"})
    (tmp_path / "confidence.json").unlink()
    servers[1].habits.prompt_log_probs = False
    done = run(config, "--queries", queries, "--mean-lambda", 0.4, "--form", "auto", "--tokens", 4, "--json")
    assert [r["form"] for r in json.loads(done.stdout)["results"]] == ["entropy", "instruct"]


def test_mean_tokens_come_from_rollouts(served: tuple[Path, Path, list[Any]], tmp_path: Path) -> None:
    """With rollouts, the wish in tokens is met; without figures anywhere, it is refused before anything is asked."""
    config, queries, servers = served
    rows = [
        {"query_id": f"c{i}", "query": q, "lambda": x, "correct": False, "tokens": t}
        for i, q in enumerate(CHAINS)
        for x, t in ((0, 2), (1, 50))
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refused = run(config, "--queries", queries, "--mean-tokens", 20, check=2)
    assert re.search(r"no variant has measured tokens.*\n.*--rollouts", refused.stderr)
    assert servers[0].calls == []
    done = run(config, "--queries", queries, "--mean-tokens", 20, "--rollouts", tmp_path / "r.jsonl", "--json")
    (result,) = json.loads(done.stdout)["results"]
    assert (result["unit"], result["fitted"]) == ("tokens", pytest.approx(20, abs=1))


def test_a_stopped_run_goes_on(served: tuple[Path, Path, list[Any]], tmp_path: Path) -> None:
    """With the server gone the command fails with advice and keeps what it has; the next one asks only for the rest."""
    config, queries, servers = served
    works = servers[0].script

    async def limited(call: Any, writer: Any) -> None:
        if len(servers[0].calls) > 30:
            from fakes.upstream import send

            await send(writer, 400, {"error": "no more"})
            return
        await works(call, writer)

    servers[0].script = limited
    failed = run(config, "--queries", queries, "--mean-lambda", 0.4, check=1)
    assert "could not be measured" in failed.stderr
    assert "run the same command again" in failed.stderr
    assert not (tmp_path / "confidence.json").exists()
    servers[0].script = works
    before = len(servers[0].calls)
    done = run(config, "--queries", queries, "--mean-lambda", 0.4)
    kept = int(re.search(r"(\d+) queries were already measured", done.stderr)[1])  # type: ignore[index]
    assert kept > 20
    assert len(servers[0].calls) - before <= len(CHAINS) - kept + 1


@pytest.mark.parametrize("form", ["instruct", "auto"])
def test_dead_servers_are_told_before_any_query(served: tuple[Path, Path, list[Any]], form: str) -> None:
    """Where no server of Instruct is up, nothing is measured: each is named with the reason, and no file is left."""
    config, queries, servers = served
    config.write_text(config.read_text().replace(servers[0].url, "http://127.0.0.1:1"))
    done = run(config, "--queries", queries, "--mean-lambda", 0.4, "--form", form, check=1)
    assert "no server at λ = 0 answers:\n  v-l000 at http://127.0.0.1:1: the connection was refused" in done.stderr
    assert "warning" not in done.stderr
    assert [path.name for path in config.parent.glob("confidence*")] == []


def test_a_run_stops_where_the_servers_no_longer_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After twice as many unanswered queries as are in flight, the rest is not tried (a scripted estimator)."""
    tried = []

    class Silent(Confidence):
        async def measure(self, query: Query) -> ConfidenceScore:
            tried.append(query.text)
            raise BusyError("silent")

    monkeypatch.setattr(measuring, "_PAUSES", ())
    queries = [Query(f"q{i}") for i in range(100)]
    with journal(tmp_path / "j", {}) as opened:
        found = asyncio.run(measuring.collect(Silent(), ("instruct",), queries, opened, 4, str))
    assert 8 <= len(tried) == found.failures["silent"] < 12


def test_nothing_existing_is_overwritten(served: tuple[Path, Path, list[Any]], tmp_path: Path) -> None:
    """A map that is there stays as it is, and nobody is asked anything."""
    config, queries, servers = served
    (tmp_path / "confidence.json").write_text("mine")
    done = run(config, "--queries", queries, "--mean-lambda", 0.4, check=2)
    assert "already exists" in done.stderr
    assert ((tmp_path / "confidence.json").read_text(), servers[0].calls) == ("mine", [])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "exactly one of --mean-lambda and --mean-tokens"),
        (["--mean-lambda", "0.4", "--mean-tokens", "9"], "exactly one of --mean-lambda and --mean-tokens"),
        (["--mean-lambda", "1.4"], "0<x<1"),
        (["--mean-lambda", "0.6", "--max-lambda", "0.5"], "not below the largest λ, 0.5"),
        (["--mean-lambda", "0.4", "--rollouts", "r.jsonl"], "--rollouts needs --mean-tokens"),
        (["--mean-lambda", "0.4", "--form", "instrukt"], "instrukt"),
        (["--mean-lambda", "0.4", "--query-column", "nope"], "nope"),
        (["--mean-lambda", "0.4", "--limit", "5"], "at least 20"),
        (["--mean-lambda", "0.4", "--queries", "none.txt"], "none.txt: cannot be read: No such file or directory"),
        (["--mean-lambda", "0.4", "--queries", sys.executable + "/x.txt"], "cannot be read: Not a directory"),
    ],
)
def test_mistakes_are_named(served: tuple[Path, Path, list[Any]], arguments: list[str], says: str) -> None:
    """Wishes without meaning are one message and exit code 2."""
    config, queries, _ = served
    assert says in run(config, "--queries", queries, *arguments, check=2).stderr


def test_a_server_without_log_probabilities_is_one_message(served: tuple[Path, Path, list[Any]]) -> None:
    """There is nothing to calibrate: exit code 1, and what to look at."""
    config, queries, servers = served
    servers[0].habits.log_probs = False
    done = run(config, "--queries", queries, "--mean-lambda", 0.4, "--form", "auto", check=1)
    assert "return no log-probabilities" in done.stderr
    assert "--check" in done.stderr
    done = run(config, "--queries", queries, "--mean-lambda", 0.4, "--limit", 30, "--out", config.parent / "m", check=1)
    assert "30 of 30 queries could not be measured" in done.stderr
    assert "whether the servers answer, with log-probabilities" in done.stderr
