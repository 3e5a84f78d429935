"""Measure the zero-shot estimator on lab pairs, calibrated as by `dami calibrate`, on 5,000 fresh queries.

    python benchmarks/confidence.py --pairs dami_merge/lab/pair pairs/seed-1 --work pairs/
    python benchmarks/confidence.py --pairs dami_merge/lab/pair --work pairs/ --served openai --form entropy

The map is fitted on the pair's 2,000 dev queries, unlabelled, to a fraction of Thinking's mean tokens, the probe's
included (--share). The largest λ is the smallest one whose accuracy on dev is within a point of the best, from figures
per variant, as a manifest has them. Answers and probes are those of benchmarks/lab.py, kept in --work.

With --served, everything goes over HTTP, as for a user: the pair's variants are served by the test servers of
plugins/dami-router/tests (vLLM's or TGI's routes over the real models), `dami calibrate` measures and fits, and the
router decides for every fresh query. It gives the same decisions, and takes two to five minutes per pair.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from estimators import TRAINED, grid_with_probes
from lab import rollouts_of

from dami_router.calibration.costs import TokenCosts
from dami_router.calibration.fitting import Sample, WantedMean, fit
from dami_router.calibration.measuring import key_of
from dami_router.choosing.policy import nearest
from dami_router.estimators.query import Query
from dami_router.rollouts.grid import Grid, figure
from dami_router.router import Decision, Router

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
sys.path.insert(0, str(ROOT / "plugins" / "dami-router" / "tests" / "router"))


def serve(pair: Path, lambdas: tuple[float, ...], protocol: str, folder: Path) -> Path:
    """Serve the endpoints until this process ends; a decision needs no server for the variants between them."""
    from fakes.lab import LabModel, LabTgi, LabVllm  # type: ignore[import-not-found]
    from fakes.loop import Loop  # type: ignore[import-not-found]

    loop, kind = Loop(), {"tgi": LabTgi, "openai": LabVllm}[protocol]
    lines = ["variants:", *(f"  - {{id: {name(x)}, lambda: {x:g}}}" for x in lambdas), "backends:"]
    for x in lambdas:
        # The nearest endpoint is a placeholder: only the endpoints are ever called.
        server = kind(name(x), LabModel(round(x), pair))
        loop.run(server.start())
        lines.append(f'  - {{variant: {name(x)}, url: "{server.url}", protocol: {protocol}}}')
    file = folder / "router.yml"
    # All servers share this process and its one thread: a slow response is not a fault.
    lines.append("probe: {interval: 600, timeout: 60}")
    file.write_text("\n".join([*lines, ""]))
    return file


def name(lambda_: float) -> str:
    """Return a variant's id."""
    return f"lab-l{round(100 * lambda_):03d}"


def split(grid: Grid, part: str) -> Grid:
    """Return the queries of one split."""
    return grid.rows(np.flatnonzero([query.startswith(part) for query in grid.queries]))


def knee(dev: Grid) -> float:
    """Return the smallest λ whose accuracy is within a point of the best."""
    accuracy = dev.correct.mean(axis=0)
    return dev.lambdas[int(np.argmax(accuracy >= accuracy.max() - 0.01))]


def calibrate(file: Path, dev: Grid, rollouts: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the command on the dev queries and add its lines to router.yml; returns its report."""
    queries = file.parent / "queries.jsonl"
    rows = zip(dev.queries, dev.texts, strict=True)
    queries.write_text("".join(json.dumps({"query_id": i, "query": text}) + "\n" for i, text in rows))
    top = options.max_lambda or knee(dev)
    tokens = options.share * float(dev.tokens[:, -1].mean())
    command = [
        str(BIN / "dami"), "calibrate", str(file), "--queries", str(queries), "--json", "--form", options.form,
        "--mean-tokens", f"{tokens:.3f}", "--max-lambda", f"{top:g}", "--rollouts", str(rollouts),
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed")
    chain = f"estimator: {{chain: [{{confidence: {{form: {options.form}, map: confidence.json, timeout: 30}}}}]}}\n"
    file.write_text(file.read_text() + chain)
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"max_lambda": top, "wanted_tokens": tokens}


async def decide(file: Path, texts: tuple[str, ...]) -> list[Decision]:
    """Return the router's decisions for queries."""
    async with Router.from_file(file) as router:
        limit = asyncio.Semaphore(8)

        async def one(text: str) -> Decision:
            async with limit:
                return await router.route(text)

        return await asyncio.gather(*map(one, texts))


def point(part: Grid, columns: list[int], probe: Any) -> dict[str, Any]:
    """Return accuracy and tokens of a choice of λ per query, compared with Thinking, with intervals over queries.

    `probe` has the tokens of each query's probe, which count.
    """
    rows = np.arange(len(columns))
    chosen, tokens = part.correct[rows, columns], part.tokens[rows, columns] + probe
    gain, accuracy = figure(chosen - part.correct[:, -1]), figure(chosen)
    thinking = float(part.correct[:, -1].mean()), float(part.tokens[:, -1].mean())
    return {
        "queries": len(rows),
        "thinking": list(thinking),
        "accuracy": [accuracy.mean, accuracy.low, accuracy.high],
        "tokens": float(tokens.mean()),
        "tokens_of_thinking": float(tokens.mean()) / thinking[1],
        "points_over_thinking": [100 * x for x in (gain.mean, gain.low, gain.high)],
    }


def auc(scores: list[float], right: Any) -> float:
    """Return how often a query that Instruct answers correctly has the higher score; 0.5 is chance, ties count half."""
    x, y = np.array(scores), np.array(right) > 0
    above = (x[y][:, None] > x[~y][None]).mean() + 0.5 * (x[y][:, None] == x[~y][None]).mean()
    return float(above)


def measure(pair: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Calibrate on dev, decide for fresh queries, and look up the results of the decisions."""
    grid = grid_with_probes(pair, options.work)
    dev, fresh = split(grid, "dev"), split(grid, "fresh")
    if options.served:
        return over_http(pair, dev, fresh, options)
    assert fresh.confidence is not None
    top = options.max_lambda or knee(dev)
    wanted = options.share * float(dev.tokens[:, -1].mean())
    fitted = fit("instruct", samples(dev), WantedMean("tokens", wanted, top), costs(dev), lambda x, _: near(dev, x))
    lambdas = [near(fresh, fitted.map(sure)) for sure in fresh.confidence]
    out = {"calibration": fitted.as_dict(), "max_lambda": top, "wanted_tokens": wanted}
    scores = fresh.confidence.tolist()
    return out | results(fresh, [fresh.lambdas.index(x) for x in lambdas], scores, fresh.probe_tokens)


def near(grid: Grid, lambda_: float) -> float:
    """Return the nearest variant's λ."""
    return nearest(lambda_, grid.lambdas)


def samples(dev: Grid) -> list[Sample]:
    """Return the dev queries as `dami calibrate` sees them."""
    assert dev.confidence is not None
    assert dev.probe_tokens is not None
    found = zip(dev.texts, dev.confidence, dev.probe_tokens, strict=True)
    return [
        Sample(text, float(sure), int(key_of(Query(text))[:12], 16) / (1 << 48), float(probe))
        for text, sure, probe in found
    ]


def costs(dev: Grid) -> TokenCosts:
    """Return the tokens of every dev query at every λ, as from --rollouts."""
    means = dict(zip(dev.lambdas, dev.tokens.mean(axis=0).tolist(), strict=True))
    own = {
        text: dict(zip(dev.lambdas, row.tolist(), strict=True)) for text, row in zip(dev.texts, dev.tokens, strict=True)
    }
    return TokenCosts(means, own)


def over_http(pair: Path, dev: Grid, fresh: Grid, options: argparse.Namespace) -> dict[str, Any]:
    """Calibrate and decide over HTTP."""
    with tempfile.TemporaryDirectory() as folder:
        file = serve(pair, fresh.lambdas, options.served, Path(folder))
        calibrated = calibrate(file, dev, rollouts_of(pair, options.work)[0], options)
        decisions = asyncio.run(decide(file, fresh.texts))
    if others := [text for text, d in zip(fresh.texts, decisions, strict=True) if d.estimator != "confidence"]:
        found = f"{len(others)} of {len(decisions)} decisions did not use confidence, as for {others[0]!r}"
        raise SystemExit(f"{pair}: {found}: an empty answer has no score; else repeat on an idle machine")
    columns = [fresh.lambdas.index(float(d.variant[-3:]) / 100) for d in decisions]
    scores = [float(d.evidence["score"]) for d in decisions]
    probe = [float(d.evidence["tokens"]) + float(d.evidence.get("tokens_thinking", 0)) for d in decisions]
    report: dict[str, Any] = {"forms": sorted({str(d.evidence["form"]) for d in decisions}), "calibration": calibrated}
    report["route_ms_p50"] = float(np.median([d.route_ms for d in decisions]))
    return report | results(fresh, columns, scores, np.array(probe))


def results(fresh: Grid, columns: list[int], scores: list[float], probe: Any) -> dict[str, Any]:
    """Return the points of a choice, for all lengths and for the trained ones."""
    lengths = np.array([(len(text) - 2) // 2 for text in fresh.texts])
    short = np.flatnonzero(lengths <= TRAINED)
    return {
        "auc_of_instruct_right": auc(scores, fresh.correct[:, 0]),
        "probe_tokens": float(np.mean(probe)),
        "all": point(fresh, columns, probe),
        "trained_lengths": point(fresh.rows(short), [columns[i] for i in short], probe[short]),
    }


def main() -> None:
    """Measure every pair and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", type=Path, required=True, help="folders with instruct/ and thinking/")
    parser.add_argument("--work", type=Path, default=Path("rollouts"), help="where rollouts are kept")
    parser.add_argument("--form", default="instruct", choices=["instruct", "discrepancy", "entropy", "auto"])
    parser.add_argument("--served", choices=["openai", "tgi"], help="measure over HTTP, with this protocol")
    parser.add_argument("--share", type=float, default=0.38, help="target fraction of Thinking's mean tokens")
    parser.add_argument("--max-lambda", type=float, help="the largest λ (default: chosen on dev, see above)")
    options = parser.parse_args()
    if options.form != "instruct" and not options.served:
        parser.error("other forms than instruct need --served")
    print(json.dumps({str(pair): measure(pair, options) for pair in options.pairs}, indent=2))


if __name__ == "__main__":
    main()
