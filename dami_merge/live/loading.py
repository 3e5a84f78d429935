"""Load two checkpoints, or a recipe's, into a model that holds both.

Whatever can be refused is refused from configs and headers, before weights are downloaded or read.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dami_merge.checkpoints.endpoints import Fetch, Pair, compared, download, local
from dami_merge.checkpoints.matching import match
from dami_merge.checkpoints.model_ref import ModelRef
from dami_merge.checkpoints.sides import Sides
from dami_merge.interpolation.depth import Anatomy
from dami_merge.interpolation.path import Path as LambdaPath
from dami_merge.interpolation.path import Uniform
from dami_merge.interpolation.setting import Constant, Setting
from dami_merge.live.attention import register
from dami_merge.live.blend import Blend
from dami_merge.live.pair_model import PairModel
from dami_merge.live.pair_weights import load_pairs
from dami_merge.live.skeleton import exchange, longest, skeleton
from dami_merge.live.sources import Source, common_dtype, find_sources
from dami_merge.live.spread import Spread
from dami_merge.live.tokenizing import Tokenizing
from dami_merge.live.weights_mode import MODES, Mode
from dami_merge.recipes.family_block import FamilyBlock, read_family
from dami_merge.recipes.recipe import Recipe
from dami_router.errors import MisuseError
from dami_router.shared import strict_yaml

__all__ = ["Loaded", "Order", "load", "order_of_endpoints", "order_of_recipe"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9._]+")
_SHORTEST_NAME = 3


@dataclass(frozen=True)
class Order:
    """What to load. `recipe`, if given, sets λ for requests that do not."""

    instruct: ModelRef
    thinking: ModelRef
    name: str
    path: Setting[LambdaPath]
    thinking_template_from: float
    dtype: str | None
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Loaded:
    """A model of both endpoints, its tokenizer and templates, and the warnings from loading."""

    name: str
    model: PairModel
    texts: Tokenizing
    positions: int
    warnings: tuple[str, ...]
    endpoints: Pair


def order_of_endpoints(
    instruct: str,
    thinking: str,
    *,
    path: str | Sequence[Mapping[str, Any]] = "uniform",
    dtype: str | None = None,
    chat_template: str = "instruct",
    name: str | None = None,
) -> Order:
    """Read the arguments about two endpoints as a recipe's; raises MisuseError for invalid ones."""
    refs = _ref(instruct), _ref(thinking)
    made = name or _common_name(instruct, thinking)
    raw = {"name": made, "lambdas": [0], "path": path, "chat_template": chat_template}
    # The reader of recipes checks them, so that both give the same messages.
    family = read_family(strict_yaml.parse(json.dumps({"family": raw}), "<arguments>"), raw)
    return Order(*refs, made, family.path, family.thinking_template_from, dtype)


def order_of_recipe(recipe: Recipe) -> Order:
    """Read an order from a recipe: its endpoints, its dtype, and its family's name, path and template."""
    family = recipe.family or FamilyBlock(
        _common_name(recipe.instruct.path, recipe.thinking.path), (), Constant(Uniform()), float("inf")
    )
    return Order(
        recipe.instruct, recipe.thinking, family.name, family.path, family.thinking_template_from, recipe.dtype, recipe
    )


def load(order: Order, *, device: str = "cpu", mode: Mode = "auto", fetch: Fetch = download) -> Loaded:
    """Load both endpoints; without a dtype in the order, the weights keep the files' own.

    Raises CheckpointError if they do not fit together or are not supported, MisuseError for invalid arguments.
    """
    if mode not in MODES:
        raise MisuseError(f"mode: expected one of {', '.join(MODES)}, found {mode!r:.40}")
    place, dtype = _device(device), _dtype(order.dtype)
    register()
    pair = compared(order.instruct, order.thinking, order.dtype)
    model, sources = _planned(pair)
    here = Pair(local(pair.instruct, fetch), local(pair.thinking, fetch), pair.warnings)
    if here != pair:
        # Only local files say where their tensors lie, and whether a stored head equals the embeddings.
        model, sources = _planned(here)
    names = {name: source.names for name, source in sources.items()}
    spread = Spread(names, Anatomy.of(here.instruct.tensors, here.instruct.config), order.path, order.recipe)
    texts = Tokenizing(here.instruct, here.thinking, order.thinking_template_from)
    pairs = load_pairs(_folders(here), sources, spread.groups, dtype or common_dtype(sources), place)
    blend = Blend()
    exchange(model, blend, pairs, place)
    made = PairModel(model, blend, list(pairs.values()), spread, place, mode)
    config = model.config.get_text_config()
    positions = longest(config)
    warnings = [*map(str, pair.warnings), *texts.warnings]
    if positions < int(getattr(config, "max_position_embeddings", 0) or 0):
        warnings.append(f"limited to {positions} tokens: beyond them this model's rotary embedding changes")
    return Loaded(order.name, made, texts, positions, tuple(warnings), here)


def _planned(pair: Pair) -> tuple[Any, dict[str, Source]]:
    """Return the model without weights, and where its parameters lie; refuses what is not supported."""
    found = match(pair.instruct, pair.thinking)
    model = skeleton(pair.instruct, untied=found.untied)
    return model, find_sources(pair, found, model)


def _folders(pair: Pair) -> Sides[Path]:
    assert pair.instruct.folder is not None
    assert pair.thinking.folder is not None
    return Sides(pair.instruct.folder, pair.thinking.folder)


def _ref(text: str) -> ModelRef:
    if not isinstance(text, str) or not text:
        raise MisuseError(f"expected a local folder or a Hub id for each endpoint, found {text!r:.40}")
    # A folder may have an @ in its name; a Hub id cannot.
    if os.path.isdir(os.path.expanduser(text)):  # noqa: PTH111, PTH112
        return ModelRef(text)
    path, _, revision = text.partition("@")
    return ModelRef(path, revision or None)


def _common_name(instruct: str, thinking: str) -> str:
    """Return the common beginning of both endpoints' names, such as Qwen3-4B; `live` if it is shorter than 3."""
    ends = [
        _NOT_IN_NAME.sub("-", text.partition("@")[0].rstrip("/").rsplit("/", 1)[-1]) for text in (instruct, thinking)
    ]
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False))
    common = "".join(pair[0] for pair in same).rsplit("-", 1)[0].strip("-._")
    return f"{common[:80]}-DAMI" if len(common) >= _SHORTEST_NAME else "live"


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    if name not in _DTYPES:
        raise MisuseError(f"dtype: expected one of {', '.join(_DTYPES)}, found {name!r:.40}")
    return _DTYPES[name]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise MisuseError(f"device {name!r:.40} is not available: {str(error).splitlines()[0]}") from None
    return device
