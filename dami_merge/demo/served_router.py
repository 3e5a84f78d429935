"""The settings with which `dami live` serves the demo's pair: the same zero-shot estimator, as the router has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dami_merge.lab.answering import Answer
from dami_router.estimators.calibrated import CalibratedMap
from dami_router.estimators.quantile import QuantileMap
from dami_router.shared.durable import write_atomically

__all__ = ["ROUTER_FILE", "write_router"]

ROUTER_FILE = "router.yml"
_MAP_FILE = "confidence.json"
_TEXT = f"""\
# Settings for `dami live --router`: λ(q) from Instruct's confidence, calibrated on the demo's unlabelled queries.
estimator:
  chain: [effort, {{confidence: {{map: {_MAP_FILE}, tokens: 1}}}}]
"""


def write_router(folder: Path, probed: Sequence[Answer], mean_lambda: float, max_lambda: float) -> None:
    """Write router.yml and the map that it names, from probes of one token.

    A served confidence is the first token's probability, 0 where that token opens a `<think>` block; the demo's own is
    the probability of the likeliest digit. The two differ only for queries that Instruct itself starts to think about.
    """
    scores = [0.0 if answer.text.startswith("<") else answer.confidence for answer in probed]
    (folder / _MAP_FILE).unlink(missing_ok=True)
    about = {"written_by": "dami demo", "queries": len(scores)}
    CalibratedMap(1, {"instruct": QuantileMap.fit(scores, mean_lambda, max_lambda)}, about).save(folder / _MAP_FILE)
    write_atomically(folder / ROUTER_FILE, _TEXT.encode())
