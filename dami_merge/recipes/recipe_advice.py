"""Warnings of `dami check`: what a valid recipe does that its author may not expect."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dami_merge.checkpoints.checkpoint import Checkpoint
from dami_merge.checkpoints.findings import Finding
from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.interpolation.depth import Anatomy
from dami_merge.interpolation.setting import Choice, Gradient, Setting
from dami_merge.recipes.explanation import interpolated
from dami_merge.recipes.recipe import Recipe

__all__ = ["advise"]

_ENDS_IN_DIGIT = re.compile(r"\.\d+$")
_EMBEDDINGS = re.compile(r"(embed_tokens|word_embeddings|embeddings|wte)\.weight$")


def advise(recipe: Recipe, instruct: Checkpoint) -> list[Finding]:
    """Resolve λ for every tensor (raising RecipeError where that fails) and return the warnings."""
    anatomy = Anatomy.of(instruct.tensors, instruct.config)
    recipe.check_layers(anatomy)
    names = interpolated(recipe, instruct)
    values = {name: recipe.lambda_for(name, anatomy) for name in names}
    found = [
        *_gradients(recipe, values, anatomy),
        *_filters(recipe, names),
        *_path_filters(recipe, names),
        *_dropped_generation_config(recipe, instruct),
        *_resized_vocabulary(recipe, instruct),
        *_path(recipe.instruct),
        *_path(recipe.thinking),
        *_far_from_range(values),
    ]
    return found


def _gradients(recipe: Recipe, values: dict[str, float], anatomy: Anatomy) -> Iterator[Finding]:
    if not any(_has_gradient(setting) for setting in recipe.settings()):
        return
    after = sorted(n for n in values if anatomy.place(n).index is None and anatomy.place(n).x == 1.0)
    last = max((n for n in values if anatomy.place(n).index == anatomy.layers - 1), default=None)
    odd = [name for name in after if last is not None and values[name] != values[last]]
    if odd:
        yield Finding(
            "warning", "gradient_end",
            f"mergekit gives tensors after the last layer a gradient's first value: `{odd[0]}` gets"
            f" λ={values[odd[0]]:g}, the last layer {values[last or odd[0]]:g}",
            "use ramp(a, b), which knows where they stand; or a filter list that names them before the gradient",
        )  # fmt: skip


def _has_gradient(setting: Setting[object]) -> bool:
    if isinstance(setting, Choice):
        return any(_has_gradient(inner) for _, inner in setting.options)
    return isinstance(setting, Gradient) and len(set(setting.values)) > 1


def _filters(recipe: Recipe, names: list[str]) -> Iterator[Finding]:
    for setting in recipe.settings():
        for text in setting.filters if isinstance(setting, Choice) else ():
            if not any(text in name for name in names):
                yield _unused(text)
            elif _ENDS_IN_DIGIT.search(text) and any(re.search(re.escape(text) + r"\d", n) for n in names):
                longer = next(n for n in names if re.search(re.escape(text) + r"\d", n))
                yield Finding(
                    "warning", "filter_prefix",
                    f"a filter is a plain substring: `{text}` also matches `{longer}`",
                    f"write `{text}.` with a dot at the end",
                )  # fmt: skip


def _unused(text: str) -> Finding:
    return Finding(
        "warning", "filter_unused", f"the filter `{text}` matches no tensor", "`dami explain --tensors` lists them"
    )


def _path_filters(recipe: Recipe, names: list[str]) -> Iterator[Finding]:
    path = recipe.family.path if recipe.family else None
    for text in path.filters if isinstance(path, Choice) else ():
        if not any(text in name for name in names):
            yield _unused(text)


def _dropped_generation_config(recipe: Recipe, instruct: Checkpoint) -> Iterator[Finding]:
    data = recipe.document.data
    keys = [key for key in ("chat_template", "tokenizer", "tokenizer_source") if data.get(key)]
    if keys and instruct.read_json("generation_config.json") is not None:
        yield Finding(
            "warning", "generation_config",
            f"mergekit drops generation_config.json if `{keys[0]}:` is set",
            "copy it from the Instruct checkpoint afterwards",
        )  # fmt: skip


def _resized_vocabulary(recipe: Recipe, instruct: Checkpoint) -> Iterator[Finding]:
    data = recipe.document.data
    raw = data.get("tokenizer")
    tokenizer: dict[str, Any] = raw if isinstance(raw, dict) else {}
    key = "tokenizer" if tokenizer else "tokenizer_source"
    source = tokenizer.get("source") if tokenizer else data.get("tokenizer_source")
    rows = next((t.shape[0] for n, t in instruct.tensors.items() if _EMBEDDINGS.search(n) and t.shape), None)
    tokens = _token_count(instruct)
    if source != "base" or tokens is None or rows is None:
        return
    multiple = tokenizer.get("pad_to_multiple_of") or 1
    made = -(-tokens // multiple) * multiple if isinstance(multiple, int) else tokens
    if made != rows:
        yield Finding(
            "warning", "vocabulary_rows",
            f"with `{key}` set to base, mergekit writes {made} rows of embeddings, one for each token; the endpoints"
            f" have {rows}",
            f"leave `{key}` out, and every row stays; `dami build` keeps them either way",
        )  # fmt: skip


def _token_count(side: Checkpoint) -> int | None:
    data = side.read_json("tokenizer.json") or {}
    model = data.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    if not isinstance(vocabulary, Mapping | list):
        return None
    names = {str(entry[0]) for entry in vocabulary} if isinstance(vocabulary, list) else set(map(str, vocabulary))
    return len(names | {str(token.get("content")) for token in data.get("added_tokens") or ()})


def _path(ref: ModelRef) -> Iterator[Finding]:
    if ref.path.startswith("~"):
        yield Finding(
            "warning", "home_path", f"mergekit does not expand `~`: it takes `{ref.path}` for a Hub id",
            f"write `{Path(ref.path).expanduser()}`",
        )  # fmt: skip
    # `./name` is no valid Hub id, which mergekit finds out without asking.
    if Path(ref.path).is_dir() and not ref.path.startswith(("/", "~", ".")) and ref.path.count("/") <= 1:
        yield Finding(
            "warning", "ambiguous_path",
            f"`{ref.path}` is a local folder that could be a Hub id: mergekit asks the Hub about it when it"
            " writes the model card, and fails there without a network",
            f"write `./{ref.path}`",
        )  # fmt: skip


def _far_from_range(values: dict[str, float]) -> Iterator[Finding]:
    outside = [value for value in values.values() if not 0.0 <= value <= 1.0]
    if outside:
        yield Finding(
            "warning", "extrapolation",
            f"λ leaves [0, 1] for {len(outside)} of {len(values)} tensors (from {min(outside):g} to {max(outside):g})",
        )  # fmt: skip
