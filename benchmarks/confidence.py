"""Measure the zero-shot estimator on lab pairs, calibrated and called over HTTP as a user would.

    python benchmarks/confidence.py --pairs dami_merge/lab/pair pairs/seed-1 --work rollouts/ --form instruct

The pair's variants are served by the test servers of plugins/dami-router/tests (vLLM's or TGI's routes over the real
models). `dami calibrate` fits the map on the pair's 1,000 dev queries, unlabelled, to a fraction of Thinking's
mean tokens; the router then decides for 1,000 test queries, and rollouts give the results. The largest λ is the
smallest one whose accuracy on dev is within a point of the best, from figures per variant, as a manifest has them.
Rollouts (about 100 seconds per pair on one core) are kept in --work, as in benchmarks/estimators.py.
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
from estimators import TRAINED, rollouts_file, rollouts_of

from dami_router.rollouts.grid import Grid, figure
from dami_router.router import Decision, Router

DEV = 1000
"""Number of dev queries for calibration."""

ROOT = Path(__file__).parents[1]
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
        "dami", "calibrate", str(file), "--queries", str(queries), "--mean-tokens", f"{tokens:.3f}", "--json",
        "--max-lambda", f"{top:g}", "--rollouts", str(rollouts), "--form", options.form,
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


def point(part: Grid, columns: list[int]) -> dict[str, Any]:
    """Return accuracy and tokens of a choice of λ per query, compared with Thinking, with intervals over queries."""
    rows = np.arange(len(columns))
    chosen, tokens = part.correct[rows, columns], part.tokens[rows, columns]
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
    """Calibrate on dev, decide for test, and look up the results of the decisions."""
    grid = rollouts_of(pair, options.work, DEV)
    dev, test = split(grid, "dev"), split(grid, "test")
    with tempfile.TemporaryDirectory() as folder:
        file = serve(pair, grid.lambdas, options.protocol, Path(folder))
        calibrated = calibrate(file, dev, rollouts_file(pair, options.work, DEV), options)
        decisions = asyncio.run(decide(file, test.texts))
    if others := sum(d.estimator != "confidence" for d in decisions):
        raise SystemExit(f"{pair}: {others} decisions did not use confidence; repeat on an idle machine")
    columns = [test.lambdas.index(float(d.variant[-3:]) / 100) for d in decisions]
    lengths = np.array([(len(text) - 2) // 2 for text in test.texts])
    short = np.flatnonzero(lengths <= TRAINED)
    forms = sorted({str(d.evidence["form"]) for d in decisions})
    scores = [float(d.evidence["score"]) for d in decisions]
    return {
        "forms": forms,
        "auc_of_instruct_right": auc(scores, test.correct[:, 0]),
        "calibration": calibrated,
        "probe_tokens": float(np.mean([float(d.evidence["tokens"]) for d in decisions])),
        "mean_lambda": float(np.mean([d.lambda_ for d in decisions])),
        "route_ms_p50": float(np.median([d.route_ms for d in decisions])),
        "all": point(test, columns),
        "trained_lengths": point(test.rows(short), [columns[i] for i in short]),
    }


def main() -> None:
    """Measure every pair and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", type=Path, required=True, help="folders with instruct/ and thinking/")
    parser.add_argument("--work", type=Path, default=Path("rollouts"), help="where rollouts are kept")
    parser.add_argument("--form", default="instruct", choices=["instruct", "discrepancy", "entropy", "auto"])
    parser.add_argument("--protocol", default="openai", choices=["openai", "tgi"])
    parser.add_argument("--share", type=float, default=0.35, help="target fraction of Thinking's mean tokens")
    parser.add_argument("--max-lambda", type=float, help="the largest λ (default: chosen on dev, see above)")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(json.dumps({pair.name: measure(pair, options) for pair in options.pairs}, indent=2))


if __name__ == "__main__":
    main()
