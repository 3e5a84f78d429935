"""The table of docs/pairs.md, measured: each row's shrunk pair goes through check, mergekit's plan and live."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from dami_merge.live.loading import load
from dami_merge.recipes.order import order_of_endpoints
from dami_router.commands.check import check
from dami_router.errors import DamiError
from support.pairs import Pair
from support.public_pairs import ROWS, TALKER, PublicPair, write_public_pair

__all__ = ["HEAD", "recipe_of", "rendered", "row_text"]

HEAD = "| pair (Instruct, Thinking) | class | licence | `dami build` | `mergekit-yaml` | TGI | `dami live` |"
_OWN = (
    "LlamaForCausalLM", "MistralForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM",
    "Qwen2VLForConditionalGeneration", "DeepseekV3ForCausalLM",
)  # fmt: skip
_FALLBACK = ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Glm4ForCausalLM", "Cohere2ForCausalLM")
_STOPS = {
    "quantised": "stops: fp8",
    "does not recognize": "stops: class unknown to Transformers",
    "which Thinking lacks": "stops: Thinking lacks parts",
    "lm_head.weight": "stops: asks for an untied head",
    "has no attribute": "stops: its file is for another Transformers",
    "NotImplementedError": "stops: class not supported",
}


def recipe_of(row: PublicPair, pair: Pair, **more: Any) -> str:
    """Return the recipe that a row needs."""
    if row.has("talker"):
        more["only_instruct"] = list(TALKER)
    return pair.recipe(0.4, dtype="bfloat16", **more)


def rendered() -> str:
    """Return the whole table as Markdown."""
    rule = "|".join(["---"] * HEAD.count(" | ")) + "|---"
    return "\n".join([HEAD, f"|{rule}|", *map(row_text, ROWS)]) + "\n"


def row_text(row: PublicPair) -> str:
    """Return one row as Markdown."""
    build, mergekit, live = _measured(row.shape)
    served = "own" if row.class_ in _OWN else "Transformers" if row.class_ in _FALLBACK else "no"
    if build.startswith("refused"):
        mergekit = served = live = "–"
    cells = (f"{row.instruct}, {row.thinking}", f"`{row.class_}`", row.licence, build, mergekit, served, live)
    return f"| {' | '.join(cells)} |"


@cache
def _measured(shape: tuple[str, tuple[str, ...]]) -> tuple[str, str, str]:
    row = next(row for row in ROWS if row.shape == shape)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pair = write_public_pair(row, folder)
        (folder / "recipe.yml").write_text(recipe_of(row, pair))
        result = CliRunner().invoke(check, [str(folder / "recipe.yml"), "--json"], standalone_mode=False)
        if result.exception is not None:
            return "refused: no common form", "–", "–"
        report = json.loads(result.stdout)
        return _build(row, report), _mergekit(report), _live(pair)


def _build(row: PublicPair, report: dict[str, Any]) -> str:
    if not report["ok"]:
        codes = {finding["code"] for finding in report["findings"] if finding["severity"] == "error"}
        return "refused: two architectures" if "architecture" in codes else "refused: quantised weights"
    notes = ["with `only_instruct`"] if row.has("talker") else []
    notes += ["reads fp8"] if row.has("fp8") or row.has("fp8_instruct") else []
    notes += ["tokens renamed"] if row.has("renamed") else []
    notes += ["leaves the authors' code out"] if row.has("code") else []
    return "; ".join(["yes", *notes])


def _mergekit(report: dict[str, Any]) -> str:
    facts = report.get("mergekit") or {}
    if facts.get("failure"):
        return next((text for part, text in _STOPS.items() if part in facts["failure"]), "stops")
    if facts.get("dropped"):
        return "drops " + ", ".join(sorted(facts["dropped"]))
    if facts.get("tied"):
        return "a head that only Transformers 5 reads"
    return "yes" if facts.get("architecture_file") else "yes, without a file"


def _live(pair: Pair) -> str:
    try:
        loaded = load(order_of_endpoints(str(pair.instruct), str(pair.thinking)))
    except DamiError:
        return "no"
    config = loaded.endpoints.instruct.config
    return "yes; text only" if "vision_config" in config else "yes"
