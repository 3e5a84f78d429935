"""Where each parameter of the loaded model lies in both endpoints' files.

Matching the endpoints is what `dami build` does: a head that only one side stores, fp8 weights with their scales, and
vocabulary matrices of different height are the tensors of a built variant. What is added here: Transformers loads
some of them under other names, and joins the experts of a mixture in one parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dami_merge.checkpoints.endpoints import Pair
from dami_merge.checkpoints.experts import stored_as
from dami_merge.checkpoints.matching import Matching
from dami_merge.checkpoints.sides import Sides
from dami_merge.checkpoints.tensor_view import TensorView
from dami_merge.interpolation.formula import TORCH_DTYPES
from dami_merge.live.skeleton import parameter_names
from dami_router.errors import CheckpointError

__all__ = ["Source", "common_dtype", "find_sources"]

_SHOWN = 3


@dataclass(frozen=True)
class Source:
    """A parameter in both endpoints' files. `names` are the tensors of a variant that it holds; they decide its λ."""

    views: Sides[TensorView]
    names: tuple[str, ...]


def find_sources(pair: Pair, found: Matching, model: Any) -> dict[str, Source]:
    """Return the source of every parameter of the model.

    Raises CheckpointError if a parameter is missing, or stored with another shape or an integer dtype.
    """
    shapes = parameter_names(model)
    matches = {_as_loaded(name, shapes, model): match for name, match in found.tensors.items()}
    views = Sides(
        stored_as(shapes, {name: match.instruct for name, match in matches.items()}),
        stored_as(shapes, {name: match.thinking for name, match in matches.items()}),
    )
    sides = Sides(pair.instruct, pair.thinking)
    for side, known in zip(sides, views, strict=True):
        _check(str(side.ref), shapes, known)
    whose = {piece.info: match.placed_as for match in matches.values() for piece in match.instruct.pieces}
    sources = {}
    for name in shapes:
        joined = dict.fromkeys(whose[piece.info] for piece in views.instruct[name].pieces)
        names = (matches[name].placed_as,) if name in matches else tuple(joined)
        sources[name] = Source(Sides(views.instruct[name], views.thinking[name]), names)
    return sources


def common_dtype(sources: Mapping[str, Source]) -> torch.dtype:
    """Return a dtype that holds both endpoints' parameters: their own, or fp32 (fp64) if they differ."""
    found = {TORCH_DTYPES[view.dtype] for source in sources.values() for view in source.views}
    if len(found) == 1:
        return found.pop()
    return torch.float64 if torch.float64 in found else torch.float32


def _as_loaded(name: str, shapes: Mapping[str, Any], model: Any) -> str:
    """Return the name that Transformers gives a stored tensor when it loads it."""
    if name in shapes:
        return name
    for renaming in _renamings(model):
        name, _ = renaming.rename_source_key(name)
    return name


def _renamings(model: Any) -> list[Any]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    return [step for step in get_model_conversion_mapping(model) if isinstance(step, WeightRenaming)]


def _check(ref: str, shapes: Mapping[str, tuple[int, ...]], views: Mapping[str, TensorView]) -> None:
    missing = [name for name in shapes if name not in views]
    if missing:
        shown = ", ".join(f"`{name}`" for name in missing[:_SHOWN])
        raise CheckpointError(f"{ref}: lacks {len(missing)} of the model's {len(shapes)} tensors, such as {shown}")
    for name, shape in shapes.items():
        view = views[name]
        if view.shape != shape:
            raise CheckpointError(f"{ref}: `{name}` is {list(view.shape)}; its config.json makes it {list(shape)}")
        if not view.floating:
            raise CheckpointError(f"{ref}: `{name}` is {view.dtype}; expected a floating dtype")
