"""Measure the trained estimator: on the lab pairs, on GSM8K rollouts of two models, and its own speed.

    python benchmarks/estimators.py --speed
    python benchmarks/estimators.py --gsm8k gsm8k_two_model_rollouts.jsonl.gz
    python benchmarks/estimators.py --pairs dami_merge/lab/pair pairs/seed-1 pairs/seed-2 --work rollouts/

With --pairs, each pair's 2,000 dev and 5,000 fresh queries are answered at 11 values of λ first, as by
benchmarks/lab.py (about four minutes per pair on one core; kept in --work). The estimator is trained only on dev and
evaluated on fresh queries: from the text alone, and with Instruct's confidence as it is served (a probe of at most 16
tokens, whose tokens count in the budget and in the result). It is compared with a rule that knows which lengths the
pair was trained on. --gsm8k takes any rollouts of two models.
With scikit-learn installed, --gsm8k also measures TF-IDF with a logistic fit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from lab import rollouts_of
from numpy.typing import NDArray

from dami_merge.lab.splits import TRAINED_LENGTHS
from dami_router.choosing.policy import nearest
from dami_router.estimators.query import Query
from dami_router.estimators.store import save
from dami_router.estimators.trained import Trained
from dami_router.estimators.training import TrainingSettings, train
from dami_router.evaluating.comparison import compare, cross_validated, length_of_query, with_estimator
from dami_router.evaluating.scores import apgr, over_mixing
from dami_router.rollouts.folds import folds_of
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.grid import Grid, figure
from dami_router.rollouts.records import read_rollouts

if TYPE_CHECKING:
    from dami_router.estimators.training import Method

TRAINED = TRAINED_LENGTHS[-1]
"""The longest chain in the training of the lab pairs."""


def grid_with_probes(pair: Path, work: Path, tokens: int = 16) -> Grid:
    """Return a pair's dev and fresh queries with Instruct's confidence from probes of at most `tokens` tokens."""
    file, probes = rollouts_of(pair, work)
    grid = grid_of(read_rollouts(file))
    found = np.array([probes[query][str(tokens)][:2] for query in grid.queries])
    return replace(grid, confidence=found[:, 0], probe_tokens=found[:, 1])


def lab(grid: Grid, budget: float) -> dict[str, Any]:
    """Train on dev and evaluate on fresh queries, for all lengths and for the trained ones."""
    split = np.array([query.startswith("fresh") for query in grid.queries])
    dev, fresh = grid.rows(np.flatnonzero(~split)), grid.rows(np.flatnonzero(split))
    lengths, deliberate = _lengths(fresh), _within_budget(dev, budget)
    out: dict[str, Any] = {}
    parts = {"all": fresh, "trained_lengths": fresh.rows(np.flatnonzero(lengths <= TRAINED))}
    for method, confidence in (("preference", False), ("preference", True), ("neighbours", False)):
        start = time.perf_counter()
        settings = TrainingSettings(method=cast("Method", method), budget=budget)
        estimator = train(dev, settings, use_confidence=confidence)
        title = f"{method}, with confidence" if confidence else f"{method}, text alone"
        out[title] = {"train_s": time.perf_counter() - start, "about": dict(estimator.about)}
        for name, part in parts.items():
            made = with_estimator(title, estimator, part)
            out[title][name] = _against_thinking(part, made.lambdas, made.cost)
    for name, part in parts.items():
        known = np.where(_lengths(part) > TRAINED, 0.0, deliberate)
        out[f"known_length, {name}"] = _against_thinking(part, tuple(known.tolist()), None)
    return out


def _lengths(grid: Grid) -> NDArray[np.intp]:
    return np.array([(len(text) - 2) // 2 for text in grid.texts])


def _within_budget(dev: Grid, budget: float) -> float:
    """Return the most accurate λ for trained lengths on dev within the budget, with λ=0 for longer chains."""
    longer = _lengths(dev) > TRAINED
    tokens = np.where(longer[:, None], dev.tokens[:, :1], dev.tokens).mean(axis=0)
    affordable = np.flatnonzero(tokens <= budget * dev.tokens[:, -1].mean())
    return dev.lambdas[int(max(affordable, key=lambda i: dev.correct[~longer, i].mean()))]


def _against_thinking(part: Grid, lambdas: tuple[float, ...], probe: NDArray[np.float64] | None) -> dict[str, Any]:
    columns = [part.lambdas.index(nearest(x, part.lambdas)) for x in lambdas]
    rows = np.arange(len(columns))
    chosen = part.correct[rows, columns]
    tokens = part.tokens[rows, columns] + (0.0 if probe is None else probe)
    gain, accuracy = figure(chosen - part.correct[:, -1]), figure(chosen)
    best = int(part.correct.mean(axis=0).argmax())
    return {
        "queries": len(rows),
        "thinking": [float(part.correct[:, -1].mean()), float(part.tokens[:, -1].mean())],
        "over_random_mixing": asdict(over) if (over := over_mixing(part, chosen, tokens)) else None,
        "best_static_in_hindsight": [part.lambdas[best], float(part.correct[:, best].mean())],
        "accuracy": [accuracy.mean, accuracy.low, accuracy.high],
        "tokens": float(tokens.mean()),
        "tokens_of_thinking": float(tokens.mean() / part.tokens[:, -1].mean()),
        "points_over_thinking": [100 * x for x in (gain.mean, gain.low, gain.high)],
    }


def gsm8k(path: Path, seeds: int, neighbours: bool) -> dict[str, Any]:
    """Return the 5-fold APGR of the default estimator and of the query's length, for several splits into folds."""
    grid = grid_of(read_rollouts(path))
    runs = []
    for seed in range(seeds):
        settings = TrainingSettings(seed=seed)
        start = time.process_time()
        contenders = [cross_validated(grid, settings, 5)]
        taken = time.process_time() - start
        print(f"folding {seed}: {taken:.1f} s of processor time to cross-validate", file=sys.stderr)
        if neighbours:
            contenders.append(cross_validated(grid, replace(settings, method="neighbours"), 5))
        found = compare(grid, [*contenders, length_of_query(grid, settings, 5)])
        runs.append({m["name"]: m["apgr_by_fold"] for m in found.as_dict()["estimators"]} | _peer(grid, seed))
        if not seed:
            keys = ("name", "apgr", "apgr_interval", "cpt", "folds_without_gap")
            first = [{key: m[key] for key in keys} for m in found.as_dict()["estimators"]]
    return {
        "first_folding": first,
        "served": _served(grid),
        **{name: _spread([run[name] for run in runs]) for name in runs[0]},
    }


def _served(grid: Grid) -> dict[str, float]:
    """Train on all queries; return the time of an estimate and the size of the folder."""
    estimator = train(grid)
    with tempfile.TemporaryDirectory() as folder:
        save(estimator, Path(folder) / "est")
        size = sum(file.stat().st_size for file in (Path(folder) / "est").iterdir())
    took = _timed(estimator, [*grid.texts[:500]])
    return {"estimate_ms_p50": took[0], "estimate_ms_p99": took[1], "folder_mb": size / 1e6}


def _timed(estimator: Trained, texts: list[str]) -> tuple[float, float]:
    """Return the median and the 99th percentile of an estimate, in milliseconds."""

    async def estimates() -> list[float]:
        took = []
        for text in texts:
            start = time.perf_counter()
            await estimator.estimate(Query(text))
            took.append(time.perf_counter() - start)
        return took

    took = 1000 * np.array(asyncio.run(estimates()))
    return float(np.quantile(took, 0.5)), float(np.quantile(took, 0.99))


def _peer(grid: Grid, seed: int) -> dict[str, list[float | None]]:
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-not-found]
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-not-found]
        from sklearn.pipeline import make_pipeline  # type: ignore[import-not-found]
    except ImportError:
        return {}
    needed = grid.correct[:, 1] > grid.correct[:, 0]
    texts, each = np.array(grid.texts, dtype=object), []
    for part in folds_of(grid.texts, 5, seed=seed):
        rest = np.setdiff1d(np.arange(len(texts)), part)
        model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000)).fit(texts[rest], needed[rest])
        score: NDArray[np.float64] = model.predict_proba(texts[part])[:, 1]
        each.append(apgr(score, *grid.correct[part].T))
    return {"tf-idf + logistic": each}


def _spread(runs: list[list[float | None]]) -> dict[str, Any]:
    each = np.array(runs, dtype=float)
    return {
        "mean": float(each.mean()),
        "by_seed": each.mean(axis=1).round(4).tolist(),
        "folds_of_seed_0": each[0].round(3).tolist(),
        "sd_over_folds": float(each.std(ddof=1)),
    }


def speed(rows: int) -> dict[str, Any]:
    """Time one estimate, and reading, gathering and training on many rows; also the process's peak memory."""
    from dami_merge.lab import SHIPPED_ROLLOUTS

    grid = grid_of(read_rollouts(SHIPPED_ROLLOUTS))
    half = grid.rows(np.arange(1000))
    start = time.perf_counter()
    estimator = train(half)
    out: dict[str, Any] = {"train_1000_queries_s": time.perf_counter() - start}
    question = "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total? " * 3

    took = _timed(estimator, [f"{question}{i}" for i in range(2000)])
    out |= {"estimate_ms_p50": took[0], "estimate_ms_p99": took[1]}
    return out | _many(rows)


def _many(rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.jsonl"
        rng = np.random.default_rng(0)
        with path.open("w", encoding="utf-8") as file:
            for i in range(rows // 10):
                hard = rng.random()
                for j in range(10):
                    right = bool(rng.random() < 1 - hard * (1 - j / 9))
                    file.write(
                        f'{{"query_id":"q{i}","query":"question {i} {"why " * int(9 * hard)}","lambda":{j / 9:.4f},'
                        f'"correct":{str(right).lower()},"tokens":{int(20 + 200 * hard * j)}}}\n'
                    )
        start = time.perf_counter()
        grid = grid_of(read_rollouts(path))
        read = time.perf_counter()
        grid.static(1.0)
        point = time.perf_counter()
        train(grid)
        end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "rows": rows, "read_s": read - start, "point_with_interval_s": point - read, "train_s": end - point,
        "peak_memory_mb": peak,
    }  # fmt: skip


def main() -> None:
    """Run the selected measurements and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", type=Path, default=[], help="folders with instruct/ and thinking/")
    parser.add_argument("--work", type=Path, default=Path("rollouts"), help="where rollouts are kept")
    parser.add_argument("--budget", type=float, default=0.33, help="fraction of Thinking's tokens, for --pairs")
    parser.add_argument("--gsm8k", type=Path, help="rollouts of two models")
    parser.add_argument("--seeds", type=int, default=5, help="splits into folds, for --gsm8k")
    parser.add_argument("--neighbours", action="store_true", help="for --gsm8k: also --method neighbours")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows, for --speed")
    given = parser.parse_args()
    out: dict[str, Any] = {}
    for pair in given.pairs:
        out[str(pair)] = lab(grid_with_probes(pair, given.work), given.budget)
    if given.gsm8k:
        out["gsm8k"] = gsm8k(given.gsm8k, given.seeds, given.neighbours)
    if given.speed:
        out["speed"] = speed(given.rows)
    print(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
