"""Measure lab pairs: accuracy and tokens by λ, the oracle, and zero-shot routing, with bootstrap intervals.

    python benchmarks/lab.py --seeds 0 1 2 --work pairs/ --out lab.json --markdown lab.md
    python benchmarks/lab.py --pairs dami_merge/lab/pair --rollouts dami_merge/lab/rollouts.jsonl.gz

With --seeds, pairs that are not in --work yet are trained there first (about 5 minutes each on one core).
Results are for 5,000 fresh queries, which nothing was tuned on; tuning uses 2,000 other (dev) queries. Answers are kept
in --work, and an interrupted run goes on with the pairs that are missing (about 4 minutes each on one core). With
--rollouts, the 1,000 dev and 1,000 test queries of the package are answered instead, and written to that file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dami_merge.files.hashing import file_sha256
from dami_merge.lab.answering import probe
from dami_merge.lab.rolling_out import roll_out
from dami_merge.lab.splits import TRAINED_LENGTHS, LabQuery, draw_queries
from dami_merge.lab.training_pair import THINKS_BY_LENGTH, THINKS_HALF_THE_TIME, train_pair
from dami_merge.lab.variants import load_variant
from dami_router.evaluating.scores import over_mixing
from dami_router.rollouts.gathering import grid_of
from dami_router.rollouts.grid import Grid, figure
from dami_router.rollouts.records import Rollout, read_rollouts, write_rollouts

LAMBDAS = [i / 10 for i in range(11)]
DEV, FRESH = 2000, 5000
"""Numbers of queries."""
PROBES = (1, 16)
"""Lengths of the probes; 16 is what the router sends unless configured."""
ONE_TOKEN = 1.0
"""What the zero-shot rule's probe generates for each query."""
INSTRUCT, THINKING = 0, 10
CONFIDENT, DELIBERATE = 0.8, 0.6
"""The zero-shot rule: λ=0 if p_I > CONFIDENT, else λ=DELIBERATE. The same for all pairs.
Both numbers were fixed on dev queries of seeds 0 and 1."""

ROWS = [
    *((f"λ = {x}", "static", str(x)) for x in LAMBDAS),
    ("zero-shot: 0 if p_I > 0.8, else 0.6; with its probe", "zero_shot"),
    ("the same rule, tuned on dev; with its probe", "tuned_on_dev"),
    ("best static λ on dev", "best_static"),
    ("oracle over 11 values of λ", "oracle"),
]
"""The table's rows: a title, and the path of its figures in the report."""

Floats = NDArray[np.float64]
Choice = NDArray[np.intp]


@dataclass(frozen=True)
class Measured:
    """Rollouts of one pair on one split: rows are queries, columns the 11 values of λ."""

    grid: Grid
    p_instruct: Floats  # (queries,), Instruct's probability of its own direct answer
    length: NDArray[np.intp]  # (queries,)

    def where(self, mask: NDArray[np.bool_]) -> Measured:
        """Return the queries selected by a mask."""
        return Measured(self.grid.rows(np.flatnonzero(mask)), self.p_instruct[mask], self.length[mask])


Probes = dict[str, dict[str, list[float]]]
"""By query id and length of the probe: Instruct's confidence (0 if it opens a think block), the tokens that the probe
generated, and the probability of the likeliest digit as the first token."""


def rollouts_of(pair: Path, work: Path) -> tuple[Path, Probes]:
    """Return a pair's rollouts on the dev and fresh queries, and its probes, as a user would get them served.

    Both are kept in `work`, under the pair's name and a digest of its weights: another pair is answered anew.
    """
    weights = "".join(file_sha256(pair / end / "model.safetensors") for end in ("instruct", "thinking"))
    name = f"{pair.name}-{hashlib.sha256(weights.encode()).hexdigest()[:8]}"
    file, probes = work / f"{name}-rollouts.jsonl.gz", work / f"{name}-probes.json"
    if not file.exists() or not probes.exists():
        work.mkdir(parents=True, exist_ok=True)
        queries = [*draw_queries("dev", DEV), *draw_queries("fresh", FRESH)]
        probes.write_text(json.dumps(_probed(pair, queries)))
        # Answers to one query are adjacent: they are similar, which halves the compressed file.
        write_rollouts(sorted(answered(pair, queries), key=lambda r: (r.query_id, r.lambda_)), file)
    found: Probes = json.loads(probes.read_text())
    return file, found


def _probed(pair: Path, queries: Sequence[LabQuery]) -> Probes:
    model, out = load_variant(pair, 0.0), dict[str, dict[str, list[float]]]()
    for tokens in PROBES:
        for query, found in zip(queries, probe(model, [q.text for q in queries], tokens=tokens), strict=True):
            sure = 0.0 if found.text.startswith("<think>") else found.confidence
            out.setdefault(query.id, {})[str(tokens)] = [sure, found.tokens, found.direct]
    return out


def answered(pair: Path, queries: Sequence[LabQuery]) -> list[Rollout]:
    """Answer queries at every λ."""
    return [
        rollout
        for lambda_ in LAMBDAS
        for rollout in roll_out(load_variant(pair, lambda_), queries, lambda_, f"lab-l{round(lambda_ * 100):03d}")
    ]


def measured(pair: Path, work: Path) -> tuple[Measured, Measured]:
    """Return the dev and the fresh queries of a pair."""
    file, probes = rollouts_of(pair, work)
    grid = grid_of(read_rollouts(file))
    direct = np.array([probes[query]["1"][2] for query in grid.queries])
    lengths = np.array([(len(text) - 2) // 2 for text in grid.texts])
    every = Measured(grid, direct, lengths)
    dev = np.array([query.startswith("dev") for query in grid.queries])
    return every.where(dev), every.where(~dev)


def oracle(m: Measured) -> Choice:
    """Return the cheapest correct variant for each query, or the cheapest of all if none is correct."""
    cheapest: Choice = np.argmin(m.grid.tokens + np.where(m.grid.correct > 0, 0.0, 1e6), axis=1)
    return cheapest


def by_confidence(m: Measured, threshold: float, deliberate: int) -> Choice:
    """Choose Instruct if it is confident, else the variant with this index."""
    return np.where(m.p_instruct > threshold, INSTRUCT, deliberate)


def tuned_rule(dev: Measured) -> tuple[float, int]:
    """Return the threshold and λ index with the best dev accuracy within 40 % of Thinking's tokens, with the probe."""
    budget = 0.4 * dev.grid.tokens[:, THINKING].mean()
    best = (-1.0, CONFIDENT, 5)
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98):
        for index in range(1, len(LAMBDAS)):
            choice = by_confidence(dev, threshold, index)
            if pick(dev.grid.tokens, choice).mean() + ONE_TOKEN <= budget:
                best = max(best, (float(pick(dev.grid.correct, choice).mean()), threshold, index))
    return best[1], best[2]


def pick(values: Floats, choice: Choice) -> Floats:
    """Return each query's value at its chosen λ."""
    chosen: Floats = values[np.arange(len(choice)), choice]
    return chosen


def point(m: Measured, choice: Choice, probe_tokens: float = 0.0) -> dict[str, Any]:
    """Return accuracy, tokens and think share of a choice of λ per query, and its paired differences to Thinking.

    `probe_tokens` are what the choice itself generates for each query; a choice with a probe is also compared with the
    best random mixture of static λ at equal tokens.
    """
    correct, tokens = pick(m.grid.correct, choice), pick(m.grid.tokens, choice) + probe_tokens
    mixing = over_mixing(m.grid, correct, tokens) if probe_tokens else None
    return {
        "accuracy": asdict(figure(correct)),
        "tokens": asdict(figure(tokens)),
        "think_share": float(pick(m.grid.think, choice).mean()),
        "accuracy_over_thinking": asdict(figure(correct - m.grid.correct[:, THINKING])),
        "tokens_of_thinking": float(tokens.mean() / m.grid.tokens[:, THINKING].mean()),
        "over_random_mixing": asdict(mixing) if mixing else None,
    }


def report(test: Measured, dev: Measured) -> dict[str, Any]:
    """Return all points of one pair, for all lengths and for the trained ones."""
    threshold, deliberate = tuned_rule(dev)
    best_static = int(np.argmax(dev.grid.correct.mean(axis=0)))
    out: dict[str, Any] = {"tuned_threshold": threshold, "tuned_lambda": LAMBDAS[deliberate]}
    out["best_static_lambda"] = LAMBDAS[best_static]
    ranges = {"all": test, "trained_lengths": test.where(test.length <= TRAINED_LENGTHS[-1])}
    for name, m in ranges.items():
        every = np.ones(len(m.length), dtype=np.intp)
        out[name] = {
            "queries": len(m.length),
            "static": {str(x): point(m, every * i) for i, x in enumerate(LAMBDAS)},
            "best_static": point(m, every * best_static),
            "zero_shot": point(m, by_confidence(m, CONFIDENT, LAMBDAS.index(DELIBERATE)), ONE_TOKEN),
            "tuned_on_dev": point(m, by_confidence(m, threshold, deliberate), ONE_TOKEN),
            "oracle": point(m, oracle(m)),
        }
    return out


def markdown(reports: dict[str, dict[str, Any]]) -> str:
    """Return tables of all pairs, one for all lengths and one for the trained lengths."""
    titles = {"all": "All lengths (n = 2…10)", "trained_lengths": f"Trained lengths alone (n ≤ {TRAINED_LENGTHS[-1]})"}
    lines: list[str] = []
    for key, title in titles.items():
        counts = {r[key]["queries"] for r in reports.values()}
        lines += [f"**{title}**, {', '.join(map(str, sorted(counts)))} queries: accuracy in % [95 % interval] at mean"]
        lines[-1] += " tokens"
        spread = [" mean ± sd over seeds |"] if len(reports) > 1 else []
        lines += ["", "| |" + "".join([*(f" {name} |" for name in reports), *spread])]
        lines += ["|---|" + "---|" * (len(reports) + len(spread))]
        for name, *keys in ROWS:
            points = [r[key][keys[0]][keys[1]] if keys[1:] else r[key][keys[0]] for r in reports.values()]
            lines.append(f"| {name} |" + "".join(f" {cell(p)} |" for p in points) + _spread(points, "accuracy"))
        gains = [r[key]["zero_shot"] for r in reports.values()]
        lines += [
            "| zero-shot against λ = 1: points, share of tokens |"
            + "".join(f" {gain(p)} |" for p in gains)
            + _spread(gains, "accuracy_over_thinking"),
            "",
        ]
    return "\n".join(lines)


def _spread(points: Sequence[dict[str, Any]], key: str) -> str:
    """Return a table cell: the mean over pairs, and their standard deviation."""
    if len(points) < 2:
        return ""
    each = np.array([100 * p[key]["mean"] for p in points])
    return f" {each.mean():.1f} ± {each.std(ddof=1):.1f} |"


def cell(p: dict[str, Any]) -> str:
    """Return a table cell: accuracy, interval, tokens."""
    a = p["accuracy"]
    return f"{100 * a['mean']:.1f} [{100 * a['low']:.1f}, {100 * a['high']:.1f}] at {p['tokens']['mean']:.1f}"


def gain(p: dict[str, Any]) -> str:
    """Return a table cell: accuracy over Thinking with its interval, and fraction of Thinking's tokens."""
    a = p["accuracy_over_thinking"]
    share = f"{100 * p['tokens_of_thinking']:.0f} %"
    return f"{100 * a['mean']:+.1f} [{100 * a['low']:+.1f}, {100 * a['high']:+.1f}], {share}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train missing pairs, measure every pair, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="train pairs with these seeds into --work")
    parser.add_argument("--control", action="store_true", help="train on a base that thinks half the time at any n")
    parser.add_argument("--work", type=Path, default=Path("lab-pairs"), help="where trained pairs are kept")
    parser.add_argument("--pairs", type=Path, nargs="*", default=[], help="directories of existing pairs")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    parser.add_argument("--markdown", type=Path, help="write the tables")
    parser.add_argument(
        "--rollouts", type=Path, help="write the package's rollouts (.jsonl.gz) of one pair, and nothing else"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pairs = {str(pair): pair for pair in options.pairs}
    policy = THINKS_HALF_THE_TIME if options.control else THINKS_BY_LENGTH
    for seed in options.seeds:
        pairs[f"seed {seed}"] = options.work / f"{'control' if options.control else 'seed'}-{seed}"
        if not (pairs[f"seed {seed}"] / "thinking").exists():  # it is written last
            print(f"training seed {seed}", file=sys.stderr)
            train_pair(seed, pairs[f"seed {seed}"], base_policy=policy)
    if not pairs or (options.rollouts and len(pairs) > 1):
        parser.error("give --seeds or --pairs (one pair alone with --rollouts)")
    if options.rollouts:
        queries = [*draw_queries("dev"), *draw_queries("test")]
        rows = answered(next(iter(pairs.values())), queries)
        write_rollouts(sorted(rows, key=lambda r: (r.query_id, r.lambda_)), options.rollouts)
        return
    reports = {}
    for name, pair in pairs.items():
        start = time.perf_counter()
        dev, fresh = measured(pair, options.work)
        reports[name] = report(fresh, dev)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    if options.out:
        options.out.write_text(json.dumps(reports, indent=1) + "\n")
    table = markdown(reports)
    if options.markdown:
        options.markdown.write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
