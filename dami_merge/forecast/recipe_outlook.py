"""What a sound recipe will lead to: which tools can merge it whole, and how far apart its endpoints are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dami_merge.build.build_plan import make_plan
from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.compatibility import Finding
from dami_merge.checkpoints.kinship import WeightGap, weight_gap
from dami_merge.forecast.mergekit_forecast import MergekitForecast, forecast_mergekit
from dami_merge.recipes.recipe import Recipe
from dami_router.errors import DamiError

__all__ = ["RecipeOutlook", "look_ahead"]

_CLOSE, _HYBRID = 0.045, 0.09
"""Limits between the σ of arXiv 2510.10977, table 1: 0.027 (Instruct, Thinking), 0.059 and 0.063 (hybrid, either)."""
_KNOWN = (
    (_CLOSE, "as close as Qwen3-4B-Instruct-2507 and Thinking-2507 (0.027), which interpolate well (arXiv 2510.10977)"),
    (_HYBRID, "as close as the hybrid Qwen3-4B and Thinking-2507 (0.063), which interpolate well (arXiv 2510.10977)"),
    (
        float("inf"),
        "farther apart than any pair with a published σ that we know; of the R1 distillations, averages saved 35 % of"
        " the tokens at 7B, but 7 % at 32B and none at 14B (arXiv 2503.20641)",
    ),
)


@dataclass(frozen=True)
class RecipeOutlook:
    """The tools that merge a recipe whole, and what `dami check` prints and warns about."""

    builder_problem: DamiError | None
    mergekit: MergekitForecast
    gap: WeightGap | None

    @property
    def tools(self) -> tuple[str, ...]:
        """The tools that give a model with every tensor, best first."""
        build = () if self.builder_problem else ("dami build",)
        return (*build, *(("mergekit-yaml",) if self.mergekit.whole else ()))

    def lines(self) -> Iterator[str]:
        """Yield the lines of `dami check`."""
        if self.gap is None:
            yield "distance         not measured: it needs both endpoints on this machine"
        else:
            known = next(text for limit, text in _KNOWN if self.gap.sigma <= limit)
            yield f"distance         {self.gap}: {known}"
        yield f"with mergekit    {self.mergekit.line}"

    def findings(self) -> Iterator[Finding]:
        """Yield what keeps a tool from merging this recipe: a warning, or an error where no tool is left."""
        if (problem := self.builder_problem) is not None:
            severity = "warning" if self.tools else "error"
            yield Finding(severity, "build_refuses", f"dami build refuses: {problem.message}", problem.hint)  # type: ignore[arg-type]
        yield from self.mergekit.findings()

    def as_dict(self) -> dict[str, Any]:
        """Return the outlook for JSON."""
        gap = None if self.gap is None else {"sigma": self.gap.sigma, "modules": dict(self.gap.modules)}
        return {"tools": list(self.tools), "mergekit": self.mergekit.as_dict(), "distance": gap}


def look_ahead(
    recipe: Recipe, instruct: Checkpoint, thinking: Checkpoint, note: Callable[[str], None]
) -> RecipeOutlook:
    """Look ahead for a recipe whose endpoints fit together; `note` is told before anything takes seconds."""
    problem: DamiError | None = None
    try:
        make_plan(recipe, instruct, thinking)
    except DamiError as error:
        problem = error
    return RecipeOutlook(problem, forecast_mergekit(recipe, instruct, thinking, note), weight_gap(instruct, thinking))
