"""What a sweep leaves: rollouts of the λ that were kept, a recipe of those on the frontier, and a report."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from dami_merge.sweep.sweep_plan import clear_steps, default_lambda, frontier_lambdas
from dami_router.errors import FailureError
from dami_router.evaluating.comparison import compare
from dami_router.evaluating.report import HEADER, rows, write_report
from dami_router.output import table
from dami_router.rollouts.grid import Grid
from dami_router.rollouts.records import Rollout, write_rollouts
from dami_router.shared.durable import write_atomically

__all__ = ["RecipeFacts", "SweepFiles", "family_name", "noise_of", "recipe_text", "table_of", "write_results"]


@dataclass(frozen=True)
class RecipeFacts:
    """What the recipe needs beside the λ: the endpoints as given, and the settings that the answers came from."""

    instruct: str
    thinking: str
    name: str
    path: str = "uniform"
    chat_template: str = "instruct"
    dtype: str | None = None


@dataclass(frozen=True)
class SweepFiles:
    """The files of a sweep, in its folder."""

    folder: Path

    @property
    def answers(self) -> Path:
        """All answers, also at λ that were dropped; a stopped sweep continues this file."""
        return self.folder / "answers.jsonl"

    @property
    def rollouts(self) -> Path:
        """The answers of the kept λ to the same queries, for `dami train` and `dami eval`."""
        return self.folder / "rollouts.jsonl"

    @property
    def recipe(self) -> Path:
        """The recipe of the family."""
        return self.folder / "recipe.yml"

    @property
    def report(self) -> Path:
        """The folder of the report."""
        return self.folder / "report"


def write_results(files: SweepFiles, grid: Grid, rollouts: list[Rollout], facts: RecipeFacts, benchmark: str) -> None:
    """Write rollouts, recipe and report, each atomically; earlier ones are replaced."""
    try:
        write_rollouts(rollouts, files.rollouts)
        write_atomically(files.recipe, recipe_text(grid, facts, benchmark).encode())
    except OSError as error:
        raise FailureError(f"{files.folder}: cannot be written: {error.strerror}") from None
    write_report(compare(grid, []), files.report, title=f"Sweep over λ: {facts.name}")


def recipe_text(grid: Grid, facts: RecipeFacts, benchmark: str) -> str:
    """Return the recipe: its family has the λ on the frontier, each with its measured scores as a comment."""
    front = frontier_lambdas(grid)
    lines = [
        "# Written by `dami sweep`: the λ that no other one dominates.",
        f"# {_comment(benchmark)}, n = {len(grid.queries)}: accuracy [95 %] at mean tokens",
    ]
    for x in front:
        point = grid.static(x)
        a = point.accuracy
        lines.append(
            f"#   λ={x:g}: {100 * a.mean:.1f} % [{100 * a.low:.1f}, {100 * a.high:.1f}] at {point.tokens.mean:,.1f}"
        )
    if noise := noise_of(grid):
        lines.append(f"# {noise[0].upper()}{noise[1:]} (95 %, paired).")
    lines += [
        "merge_method: dami",
        f"base_model: {_quoted(facts.instruct)}   # λ = 0",
        "models:",
        f"  - model: {_quoted(facts.thinking)}   # λ = 1",
        "parameters:",
        f"  lambda: {default_lambda(grid):g}   # the cheapest within one standard error of the most accurate",
        *([f"dtype: {facts.dtype}"] if facts.dtype else []),
        "family:",
        f"  name: {facts.name}",
        f"  lambdas: [{_listed(front)}]",
    ]
    lines += [f"  path: {_quoted(facts.path)}"] if facts.path != "uniform" else []
    lines += [f"  chat_template: {_quoted(facts.chat_template)}"] if facts.chat_template != "instruct" else []
    return "\n".join(lines) + "\n"


def table_of(grid: Grid) -> str:
    """Return the table of all kept λ, the caps and the oracle."""
    return table(HEADER, rows(compare(grid, [])))


def family_name(name: str) -> str:
    """Return a name that the Hub accepts, from the name of the pair."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name.rsplit("/", 1)[-1])
    plain = re.sub(r"-{2,}", "-", re.sub(r"\.{2,}", ".", plain)).strip("-._")[:80] or "pair"
    return plain if "dami" in plain.lower() else f"{plain}-DAMI"


def noise_of(grid: Grid) -> str | None:
    """Return which λ on the frontier are clearly apart, in words; None if all are."""
    steps = clear_steps(grid)
    if set(steps) == set(frontier_lambdas(grid)):
        return None
    apart = f"only λ = {_listed(steps)} are" if len(steps) > 1 else "no two λ on the frontier are"
    return f"on n = {len(grid.queries):,}, {apart} clearly apart in accuracy"


def _listed(lambdas: list[float]) -> str:
    return ", ".join(f"{x:g}" for x in lambdas)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _comment(text: str) -> str:
    return " ".join(text.split())[:200]
