"""What `mergekit-yaml` would do with a recipe: the tensors that it would drop, and why it would stop.

mergekit's own architecture file answers in milliseconds where it names every tensor of the checkpoint. In all
other cases mergekit itself is asked for its plan, which takes seconds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.compatibility import Finding
from dami_merge.forecast.mergekit_table import architecture_file, has_architecture, is_installed
from dami_merge.interpolation.depth import Anatomy
from dami_merge.recipes.recipe import Recipe

__all__ = ["MergekitForecast", "forecast_mergekit"]

_NOT_WEIGHTS = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|\.attn\.bias$")
"""Buffers that Transformers computes and skips in a checkpoint."""
_GROUPS = (
    ("multi-token prediction", re.compile(r"\bmtp|mtp_layers|nextn")),
    ("fp8 scales", re.compile(r"_scale(_inv)?$")),
    ("experts", re.compile(r"\.experts\.")),
    ("vision and audio", re.compile(r"visual|vision|audio|talker|code2wav|projector")),
    ("head", re.compile(r"lm_head")),
    ("embeddings", re.compile(r"embed|\bwte\b")),
)
_SHOWN = 2


@dataclass(frozen=True)
class MergekitForecast:
    """What mergekit would do. `source` says where the answer is from: its architecture file, its plan, or nowhere."""

    source: Literal["file", "plan", "not installed"]
    class_: str
    file: bool
    tensors: int
    lost: dict[str, list[str]] = field(default_factory=dict)
    failure: str | None = None
    tied: bool = False
    """Whether the output would hold a head of its own under a config that ties it to the embeddings."""

    @property
    def whole(self) -> bool:
        """Whether `mergekit-yaml` would write every tensor, under a config that makes every loader read it."""
        return not self.lost and not self.tied and self.failure is None and self.source != "not installed"

    @property
    def line(self) -> str:
        """Return the forecast as a line of `dami check`."""
        note = "" if self.file else f"; no architecture file for {self.class_}"
        if self.source == "not installed":
            return "mergekit is not installed"
        if self.failure:
            return "mergekit-yaml would stop" + note
        note += ", so it infers one" if note else ""
        count = sum(map(len, self.lost.values()))
        return f"mergekit-yaml would write {self.tensors - count} of {self.tensors} tensors{note}"

    def findings(self) -> Iterator[Finding]:
        """Yield a warning where `mergekit-yaml` would stop or drop tensors."""
        note = "" if self.file else f"; mergekit 0.1.5 has no architecture file for {self.class_}"
        if self.failure:
            yield Finding(
                "warning", "mergekit_stops", f"mergekit-yaml would stop: {self.failure}{note}",
                "use `dami build`, which reads the checkpoints' own tensors and needs no architecture file",
            )  # fmt: skip
        elif self.lost:
            count = sum(map(len, self.lost.values()))
            groups = "; ".join(f"{len(names)} of {label} ({_some(names)})" for label, names in self.lost.items())
            yield Finding(
                "warning", "mergekit_drops",
                f"mergekit-yaml would drop {count} of {self.tensors} tensors without an error: {groups}{note}",
                "use `dami build`, which keeps every tensor",
            )  # fmt: skip
        if self.tied and not self.failure:
            yield Finding(
                "warning", "mergekit_tied",
                "mergekit-yaml would write a head, but keep Instruct's tie_word_embeddings: true; Transformers 5 reads"
                " such a head, vLLM and Transformers 4 use the embeddings instead",
                "use `dami build`, which sets it to false",
            )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Return the forecast for JSON: whether it is whole, and how many tensors each group would lose."""
        lost = {label: len(names) for label, names in self.lost.items()}
        return {
            "whole": self.whole, "source": self.source, "architecture_file": self.file, "dropped": lost,
            "failure": self.failure, "tied": self.tied,
        }  # fmt: skip


def forecast_mergekit(
    recipe: Recipe, instruct: Checkpoint, thinking: Checkpoint, note: Callable[[str], None]
) -> MergekitForecast:
    """Say what `mergekit-yaml` would do with a recipe whose endpoints fit together; `note` is told before a wait."""
    class_ = str((instruct.config.get("architectures") or ["unknown"])[0])
    total, known = len(instruct.tensors), has_architecture(class_)
    if not is_installed():
        return MergekitForecast("not installed", class_, known, total)
    if failure := _known_failure(recipe, instruct, thinking):
        return MergekitForecast("file", class_, known, total, failure=failure)
    tied = instruct.tied and not thinking.tied
    if _covered(recipe, instruct, thinking, class_):
        return MergekitForecast("file", class_, known, total, tied=tied)
    note(f"asking mergekit for its plan of {class_}; this takes some seconds")
    from dami_merge.mergekit_adapter import plan_tensors

    plan = plan_tensors(instruct, thinking, recipe.document.data.get("slices") or ())
    if plan.failure:
        return MergekitForecast("plan", class_, known, total, failure=plan.failure)
    lost = _grouped(_dropped(recipe, instruct, plan.used), instruct)
    return MergekitForecast("plan", class_, known, total, lost, tied=tied)


def _known_failure(recipe: Recipe, instruct: Checkpoint, thinking: Checkpoint) -> str | None:
    """Return why the method `dami`, or any loader of its output, cannot take a pair that `dami build` may take."""
    for side in (instruct, thinking):
        quantised = side.config.get("quantization_config") or any(
            t.dtype.startswith("F8_") for t in side.tensors.values()
        )
        if quantised:
            return f"{side.ref} is quantised, and mergekit does not apply its scales"
    aligned = any(recipe.document.data.get(key) for key in ("tokenizer", "tokenizer_source"))
    for name, info in instruct.tensors.items():
        other = thinking.tensors.get(name)
        if other is not None and other.shape != info.shape and not aligned:
            return f"`{name}` is {list(info.shape)} in Instruct, {list(other.shape)} in Thinking"
    return None


def _covered(recipe: Recipe, instruct: Checkpoint, thinking: Checkpoint, class_: str) -> bool:
    if recipe.slices or any("auto_map" in side.config for side in (instruct, thinking)):
        return False
    file = architecture_file(class_, str(instruct.config.get("model_type")))
    return file is not None and all(
        file.covers(side.config, frozenset(n for n in side.tensors if not _NOT_WEIGHTS.search(n)))
        for side in (instruct, thinking)
    )


def _dropped(recipe: Recipe, instruct: Checkpoint, used: frozenset[str]) -> list[str]:
    kept = _kept_layers(recipe)
    anatomy = Anatomy.of(instruct.tensors, instruct.config)
    return [
        name for name in instruct.tensors
        if name not in used
        and not _NOT_WEIGHTS.search(name)
        and not (name.endswith("lm_head.weight") and instruct.tied)
        and (kept is None or anatomy.place(name).index is None or anatomy.place(name).index in kept)
    ]  # fmt: skip


def _kept_layers(recipe: Recipe) -> set[int] | None:
    if not recipe.slices:
        return None
    return {layer for part in recipe.slices for layer in range(part.first, part.last)}


def _grouped(names: list[str], instruct: Checkpoint) -> dict[str, list[str]]:
    anatomy = Anatomy.of(instruct.tensors, instruct.config)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_group(name, anatomy), []).append(name)
    order = Counter({label: len(found) for label, found in groups.items()})
    return {label: groups[label] for label, _ in order.most_common()}


def _group(name: str, anatomy: Anatomy) -> str:
    place = anatomy.place(name)
    if place.index is not None and place.index >= place.layers == anatomy.layers:
        return "multi-token prediction"
    return next((label for label, pattern in _GROUPS if pattern.search(name)), "other weights")


def _some(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in sorted(names)[:_SHOWN])
    return shown + (", …" if len(names) > _SHOWN else "")
