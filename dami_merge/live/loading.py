"""Load two checkpoints, or a recipe's, into a model that holds both.

Whatever can be refused is refused from configs and headers, before weights are downloaded or read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dami_merge.checkpoints.endpoints import Fetch, Pair, compared, download, local
from dami_merge.checkpoints.matching import match
from dami_merge.checkpoints.sides import Sides
from dami_merge.interpolation.depth import Anatomy
from dami_merge.live.attention import register
from dami_merge.live.blend import Blend
from dami_merge.live.pair_model import PairModel
from dami_merge.live.pair_weights import load_pairs
from dami_merge.live.skeleton import exchange, longest, skeleton
from dami_merge.live.sources import Source, common_dtype, find_sources
from dami_merge.live.spread import Spread
from dami_merge.live.tokenizing import Tokenizing
from dami_merge.live.weights_mode import MODES, Mode
from dami_merge.recipes.order import Order
from dami_router.errors import MisuseError

__all__ = ["Loaded", "load"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Loaded:
    """A model of both endpoints, its tokenizer and templates, and the warnings from loading."""

    name: str
    model: PairModel
    texts: Tokenizing
    positions: int
    warnings: tuple[str, ...]
    endpoints: Pair


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
    spread = Spread(names, Anatomy.of(here.instruct.tensors, here.instruct.config), order.family.path, order.recipe)
    texts = Tokenizing(here.instruct, here.thinking, order.family.thinking_template_from)
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
